"use strict";
// The cells over the picture as a grid that can be pointed at, tapped, and walked by keys, and that a screen reader reads.

// Fills `root` with H rows of W cells. `labelOf(i)`: what cell i of this step is; `choose(i)`: it is pointed at or has the
// focus, -1: none; `turn(n)`: on by n steps. Gives `label()`, to be called when what the cells are has changed.
function makeGrid(root, H, W, { labelOf, choose, turn }) {
  const cells = [];
  for (let y = 0; y < H; y++) {
    const row = document.createElement("div");
    row.setAttribute("role", "row");
    for (let x = 0; x < W; x++) {
      const cell = document.createElement("div");
      cell.setAttribute("role", "gridcell");
      cell.tabIndex = cells.length ? -1 : 0; // one stop for the tab key; arrows go on from there
      row.append(cell); cells.push(cell);
    }
    root.append(row);
  }
  const focused = () => cells.indexOf(document.activeElement);
  const indexOf = event => cells.indexOf(event.target);

  function label() {
    const at = focused(); // read aloud again when the step changes under the focus; others when they get it
    if (at >= 0) cells[at].setAttribute("aria-label", labelOf(at));
  }
  function go(i) {
    cells.forEach((cell, other) => { cell.tabIndex = other === i ? 0 : -1; });
    cells[i].focus();
  }
  root.addEventListener("pointermove", event => { if (event.pointerType === "mouse" && indexOf(event) >= 0) choose(indexOf(event)); });
  root.addEventListener("mouseleave", () => choose(focused()));
  root.addEventListener("click", event => { if (indexOf(event) >= 0) go(indexOf(event)); });
  root.addEventListener("focusin", event => choose(indexOf(event)));
  root.addEventListener("focusout", event => { if (!root.contains(event.relatedTarget)) choose(-1); });
  root.addEventListener("keydown", event => {
    const i = focused(), x = i % W, y = Math.floor(i / W);
    const to = { ArrowLeft: x > 0 && i - 1, ArrowRight: x < W - 1 && i + 1, ArrowUp: y > 0 && i - W,
                 ArrowDown: y < H - 1 && i + W, Home: i - x, End: i - x + W - 1 }[event.key];
    const steps = { PageUp: -1, PageDown: 1 }[event.key];
    if (i < 0 || (to === undefined && steps === undefined)) return;
    event.preventDefault(); // also where there is nothing further: the page's keys must not turn the frame instead
    if (steps) turn(steps);
    else if (to !== false) go(to);
  });
  return { label };
}
