"use strict";
// A viewer of what was kept of a video: frames with their cells, importance as heat, a time line, counts.
// `await mountViewer(root, story)` fills the element `root`; `story` is what vllm_prune/show/html.py describes. It gives
// `choose({panel, frame, view, cell})`, which changes what is shown, and `close()`, which ends it.

const VIEWER_MARKUP = `
  <div class="bar">
    <div class="choice" data-part="panels" role="group" aria-label="configuration"></div>
    <div class="choice" data-part="views" role="group" aria-label="view"></div>
  </div>
  <div class="stage" data-part="stage">
    <div>
      <div class="picture">
        <canvas class="view" data-part="view" role="img"></canvas>
        <div class="cells" data-part="cells" role="grid"></div>
      </div>
      <div class="player">
        <button type="button" data-part="play">Play</button>
        <input data-part="slider" type="range" min="0" step="1" value="0" aria-label="frame">
        <span data-part="clock" class="faint"></span>
      </div>
      <canvas class="time" data-part="time" role="img" aria-label="tokens kept in each step, and temporal segments"></canvas>
      <div class="faint"><span data-part="help"></span> <span class="keys">Keys: left and right for frames, 1-9 for
        configurations, space to play; in the picture, arrows go from cell to cell, page up and down from step to step.</span></div>
    </div>
    <aside>
      <section class="card" data-part="answer-box"><h2>Answer</h2><div class="answer" data-part="answer"></div></section>
      <section class="card"><h2>Tokens</h2><table data-part="counts"></table></section>
      <section class="card cell faint" data-part="cell"></section>
      <section class="card"><h2>Legend</h2>
        <div class="key"><span class="swatch" style="background:#9fb49f;outline:2px solid #fff;
          box-shadow:0 0 0 3px #889"></span>kept: a token of its own</div>
        <div class="key"><span class="swatch groups"><b>1</b><b>2</b></span>
          merged: cells of one number and colour share one token, placed at the dot</div>
        <div class="key"><span class="swatch" style="background:#3c3c3c"></span>dropped</div>
        <div class="key"><span class="swatch" style="background:linear-gradient(90deg,#080818,#461060,#ba2854,#f68028,
          #fcf4a4)"></span>importance for the question</div>
      </section>
      <section class="card"><h2>Configuration</h2><pre data-part="config"></pre></section>
    </aside>
  </div>`;
const STATE_NAMES = ["kept, a token of its own", "merged", "dropped before the language model", "dropped by the question"];
const VIEWS = ["tokens", "importance", "video"];
const NARROW = 820, ASIDE = 300, GAP = 20; // pixels: one column below NARROW, else the picture leaves ASIDE beside it

async function mountViewer(root, story) {
  const images = await Promise.all(story.frames.map(loadImage));
  const [T, H, W] = story.grid, inStep = H * W;
  const show = { panel: 0, frame: 0, view: "tokens", cell: -1, playing: null };
  root.classList.add("viewer");
  root.innerHTML = VIEWER_MARKUP;
  const part = name => root.querySelector(`[data-part="${name}"]`);
  const touch = matchMedia("(hover: none) and (pointer: coarse)").matches;
  story.panels.forEach(panel => unpack(panel, story.grid));
  const stepOf = frame => Math.min(T - 1, Math.floor(frame / story.framesPerStep));
  const grid = makeGrid(part("cells"), H, W, {
    labelOf: i => tellCell(story.panels[show.panel], stepOf(show.frame) * inStep + i),
    choose: i => choose({ cell: i < 0 ? -1 : stepOf(show.frame) * inStep + i }),
    turn: steps => choose({ frame: (stepOf(show.frame) + steps) * story.framesPerStep }),
  });

  // As wide as there is room for, unless the frame would not fit the window's height; the rest is for the cards.
  function drawView() {
    const canvas = part("view"), image = images[show.frame], panel = story.panels[show.panel], stage = part("stage");
    const ratio = window.devicePixelRatio || 1, room = stage.clientWidth;
    const widest = room > NARROW ? room - ASIDE - GAP : room;
    const width = Math.floor(Math.min(widest, Math.max(0.8 * Math.max(innerHeight, 560) * W / H, 280))), height = width * H / W;
    stage.style.setProperty("--picture", `${width}px`);
    canvas.style.height = `${height}px`;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.drawImage(image, 0, 0, width, height);
    const at = { base: stepOf(show.frame) * inStep, W, H, w: width / W, h: height / H };
    if (show.view === "importance" && panel.heat) drawHeat(g, panel, at);
    if (show.view === "tokens") drawTokens(g, panel, at, image);
    if (show.cell >= 0) drawChosen(g, panel, at, show.cell);
  }

  function drawText() {
    const panel = story.panels[show.panel], total = panel.counts[0][1];
    part("answer-box").hidden = panel.answer === null;
    part("answer").textContent = panel.answer;
    part("config").textContent = JSON.stringify(panel.config, null, 1);
    part("counts").replaceChildren(...panel.counts.flatMap(([what, count]) => countRows(what, count, total)),
      ...(panel.structure ? [countRow("structure between them", panel.structure.toLocaleString("en"))] : []));
    part("clock").textContent = `frame ${show.frame + 1} of ${images.length}, ${story.seconds[show.frame].toFixed(1)} s`;
    part("slider").value = show.frame;
    part("slider").setAttribute("aria-valuetext", part("clock").textContent);
    part("view").setAttribute("aria-label", `frame ${show.frame + 1}, ${show.view}: ` +
      `${panel.kept[stepOf(show.frame)]} of ${inStep} cells of this step have a token in the prompt`);
    part("cells").setAttribute("aria-label", `cells of step ${stepOf(show.frame)}`);
    press("panels", show.panel); press("views", VIEWS.indexOf(show.view));
    part("views").children[1].disabled = !panel.heat;
    const asked = touch ? "Tap a cell to see what became of it." : "Point at a cell, or go to it by keys, to see what became of it.";
    part("cell").textContent = show.cell < 0 ? asked : tellCell(panel, show.cell);
  }
  function tellCell(panel, at) {
    const token = panel.token[at], state = panel.state[at], members = [];
    if (token >= 0) panel.token.forEach((other, i) => { if (other === token) members.push(Math.floor(i / inStep)); });
    let text = `Step ${Math.floor(at / inStep)}, row ${Math.floor(at / W) % H}, column ${at % W}: ${STATE_NAMES[state]}`;
    text += state === MERGED ? ` into token ${panel.group.get(token)}.` : ".";
    const steps = new Set(members).size;
    if (members.length > 1) text += ` Its token stands for ${members.length} cells in ${steps} step${steps > 1 ? "s" : ""}.`;
    if (panel.heat) text += ` Importance: ${(panel.heat[at] / 65535).toPrecision(2)} of the largest.`;
    return text;
  }
  function press(id, index) {
    Array.from(part(id).children).forEach((button, i) => button.setAttribute("aria-pressed", i === index));
  }
  function draw() { drawText(); drawView(); grid.label(); drawTime(part("time"), story.panels[show.panel], stepOf(show.frame)); }

  function choose(changes) {
    Object.assign(show, changes);
    show.frame = Math.max(0, Math.min(images.length - 1, show.frame));
    if (!VIEWS.includes(show.view) || (show.view === "importance" && !story.panels[show.panel].heat)) show.view = "tokens";
    if (show.cell >= T * inStep) show.cell = -1;
    // The chosen place stays chosen when the step changes.
    if (show.cell >= 0 && "frame" in changes && !("cell" in changes)) show.cell = stepOf(show.frame) * inStep + show.cell % inStep;
    draw();
  }
  function addButtons(id, names, act) {
    part(id).append(...names.map((name, i) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = name; button.addEventListener("click", () => act(i));
      return button;
    }));
  }
  function play() {
    if (show.playing) { clearInterval(show.playing); show.playing = null; }
    else {
      const gap = story.seconds.length > 1 ? 1000 * (story.seconds[1] - story.seconds[0]) : 500;
      show.playing = setInterval(() => choose({ frame: (show.frame + 1) % images.length }), Math.max(60, Math.min(gap, 1000)));
    }
    part("play").textContent = show.playing ? "Pause" : "Play";
  }

  const frames = story.framesPerStep > 1 ? ` (${story.framesPerStep} frames)` : "";
  part("help").textContent = `Bars: tokens kept with a position in each step${frames}. Strip: temporal segments of stage 1. ` +
    `${touch ? "Tap" : "Point at"} a cell to see all it was merged with.`;
  part("slider").max = images.length - 1;
  addButtons("panels", story.panels.map(panel => panel.label), panel => choose({ panel }));
  addButtons("views", VIEWS, i => choose({ view: VIEWS[i] }));
  part("slider").addEventListener("input", event => choose({ frame: Number(event.target.value) }));
  part("play").addEventListener("click", play);
  part("time").addEventListener("click", event => {
    const box = part("time").getBoundingClientRect();
    choose({ frame: Math.floor((event.clientX - box.left) / box.width * T) * story.framesPerStep });
  });
  const pressKey = event => {
    if (["INPUT", "TEXTAREA", "SELECT", "VIDEO"].includes(event.target.tagName) || event.defaultPrevented) return;
    if (event.key === "ArrowRight") choose({ frame: show.frame + 1 });
    else if (event.key === "ArrowLeft") choose({ frame: show.frame - 1 });
    else if (event.key === " " && event.target.tagName !== "BUTTON") { event.preventDefault(); play(); }
    else if (story.panels[Number(event.key) - 1]) choose({ panel: Number(event.key) - 1 });
  };
  addEventListener("keydown", pressKey);
  addEventListener("resize", draw);
  const close = () => {
    removeEventListener("keydown", pressKey);
    removeEventListener("resize", draw);
    if (show.playing) clearInterval(show.playing);
  };
  return { choose, close };
}

function countRow(...texts) {
  const row = document.createElement("tr");
  row.append(...texts.map(text => { const cell = document.createElement("td"); cell.textContent = text; return cell; }));
  return row;
}
function countRows(what, count, total) {
  const row = countRow(what, `${count.toLocaleString("en")} (${Math.round(100 * count / total)}%)`);
  const meter = document.createElement("tr");
  const bar = document.createElement("td"), div = document.createElement("div"), fill = document.createElement("i");
  bar.colSpan = 2; meter.setAttribute("aria-hidden", true); div.className = "meter"; fill.style.width = 100 * count / total + "%";
  div.append(fill); bar.append(div); meter.append(bar);
  return [row, meter];
}

// A frame that is not decoded yet could not be drawn.
async function loadImage(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
