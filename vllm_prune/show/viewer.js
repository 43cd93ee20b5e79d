"use strict";
// A viewer of what was kept of a video: frames with their cells, importance as heat, a time line, counts.
// `await mountViewer(root, story)` fills the element `root`; `story` is what vllm_prune/show/html.py describes. It gives
// `choose({panel, frame, view, hover})`, which changes what is shown, and `close()`, which ends it.

const VIEWER_MARKUP = `
  <div class="bar">
    <div class="choice" data-part="panels" role="group" aria-label="configuration"></div>
    <div class="choice" data-part="views" role="group" aria-label="view"></div>
  </div>
  <div class="stage">
    <div>
      <canvas class="view" data-part="view" role="img"></canvas>
      <div class="player">
        <button type="button" data-part="play">Play</button>
        <input data-part="slider" type="range" min="0" step="1" value="0" aria-label="frame">
        <span data-part="clock" class="faint"></span>
      </div>
      <canvas class="time" data-part="time" role="img" aria-label="tokens kept in each step, and temporal segments"></canvas>
      <div class="faint" data-part="help"></div>
    </div>
    <aside>
      <section class="card" data-part="answer-box"><h2>Answer</h2><div class="answer" data-part="answer"></div></section>
      <section class="card"><h2>Tokens</h2><table data-part="counts"></table></section>
      <section class="card"><h2>Legend</h2>
        <div class="key"><span class="swatch" style="background:#9fb49f;outline:2px solid #fff;
          box-shadow:0 0 0 3px #889"></span>kept: a token of its own</div>
        <div class="key"><span class="swatch" style="background:linear-gradient(90deg,#d9895c 50%,#5c9bd9 50%)"></span>
          merged: cells of one colour share one token, placed at the dot</div>
        <div class="key"><span class="swatch" style="background:#3c3c3c"></span>dropped</div>
        <div class="key"><span class="swatch" style="background:linear-gradient(90deg,#080818,#461060,#ba2854,#f68028,
          #fcf4a4)"></span>importance for the question</div>
      </section>
      <section class="card cell faint" data-part="cell"></section>
      <section class="card"><h2>Configuration</h2><code data-part="config"></code></section>
    </aside>
  </div>`;

async function mountViewer(root, story) {
  const images = await Promise.all(story.frames.map(loadImage));
  const [T, H, W] = story.grid;
  const KEPT = 0, MERGED = 1, DROPPED = 2;
  const STATE_NAMES = ["kept, a token of its own", "merged", "dropped before the language model", "dropped by the question"];
  const VIEWS = ["tokens", "importance", "video"];
  const HEAT = [[8, 8, 24], [70, 16, 96], [186, 40, 84], [246, 128, 40], [252, 244, 164]];
  const show = { panel: 0, frame: 0, view: "tokens", hover: -1, playing: null };
  root.classList.add("viewer");
  root.innerHTML = VIEWER_MARKUP;
  const part = name => root.querySelector(`[data-part="${name}"]`);

  function bytesOf(text) { return Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer; }
  for (const panel of story.panels) {
    panel.state = new Uint8Array(bytesOf(panel.state));
    panel.token = new Int32Array(bytesOf(panel.token));
    panel.anchor = new Uint8Array(bytesOf(panel.anchor));
    panel.heat = panel.heat && new Uint16Array(bytesOf(panel.heat));
    panel.kept = Array.from({ length: T }, (_, t) => panel.anchor.subarray(t * H * W, (t + 1) * H * W).reduce((a, b) => a + b, 0));
    if (panel.heat) panel.hottest = Math.max(1, Array.from(panel.heat).sort((a, b) => a - b)[Math.floor(0.99 * (T * H * W - 1))]);
  }
  const stepOf = frame => Math.min(T - 1, Math.floor(frame / story.framesPerStep));

  function clusterColour(token, alpha) {
    const light = 55 + 10 * (token % 3 - 1);
    return `hsla(${(token * 0.61803398875 % 1) * 360}, 85%, ${light}%, ${alpha})`;
  }
  function heatColour(x) {
    const at = Math.min(0.9999, x) * (HEAT.length - 1), i = Math.floor(at), f = at - i;
    return `rgb(${HEAT[i].map((low, c) => Math.round(low + f * (HEAT[i + 1][c] - low))).join(",")})`;
  }

  function drawView() {
    const canvas = part("view"), image = images[show.frame], panel = story.panels[show.panel];
    const ratio = window.devicePixelRatio || 1;
    const width = Math.min(canvas.parentElement.clientWidth, 0.64 * Math.max(innerHeight, 560) * W / H), height = width * H / W;
    canvas.style.width = width + "px"; canvas.style.height = height + "px";
    canvas.width = width * ratio; canvas.height = height * ratio;
    const g = canvas.getContext("2d");
    g.scale(ratio, ratio);
    g.drawImage(image, 0, 0, width, height);
    const cell = { w: width / W, h: height / H }, base = stepOf(show.frame) * H * W;
    if (show.view === "importance" && panel.heat) drawHeat(g, panel, base, cell, width, height);
    if (show.view === "tokens") drawTokens(g, panel, base, cell, image);
    drawHover(g, panel, base, cell);
  }
  function eachCell(draw) { for (let i = 0; i < H * W; i++) draw(i, i % W, Math.floor(i / W)); }
  function drawHeat(g, panel, base, cell, width, height) {
    g.globalAlpha = 0.8;
    eachCell((i, x, y) => {
      g.fillStyle = heatColour(Math.sqrt(Math.min(1, panel.heat[base + i] / panel.hottest)));
      g.fillRect(x * cell.w, y * cell.h, cell.w + 0.5, cell.h + 0.5);
    });
    g.globalAlpha = 1;
  }
  function drawTokens(g, panel, base, cell, image) {
    const dropped = new Path2D();
    eachCell((i, x, y) => {
      if (panel.state[base + i] >= DROPPED) dropped.rect(x * cell.w, y * cell.h, cell.w + 0.5, cell.h + 0.5);
    });
    g.save(); g.clip(dropped); g.filter = "grayscale(1) brightness(.33)";
    g.drawImage(image, 0, 0, cell.w * W, cell.h * H); g.restore();
    eachCell((i, x, y) => {
      if (panel.state[base + i] !== MERGED) return;
      g.fillStyle = clusterColour(panel.token[base + i], 0.28);
      g.fillRect(x * cell.w, y * cell.h, cell.w, cell.h);
    });
    drawOutlines(g, panel, base, cell);
    const radius = Math.max(1.5, Math.min(cell.w, cell.h) * 0.12);
    eachCell((i, x, y) => {
      if (!panel.anchor[base + i] || panel.state[base + i] !== MERGED) return;
      g.beginPath(); g.arc((x + 0.5) * cell.w, (y + 0.5) * cell.h, radius, 0, 7);
      g.fillStyle = "#fff"; g.strokeStyle = "#222"; g.lineWidth = 1; g.fill(); g.stroke();
    });
  }
  function outlineGroup(panel, base, x, y) {
    if (x < 0 || y < 0 || x >= W || y >= H) return -3;
    const state = panel.state[base + y * W + x];
    return state === MERGED ? panel.token[base + y * W + x] : state === KEPT ? -1 : -2;
  }
  function drawOutlines(g, panel, base, cell) {
    const thick = Math.max(1, Math.min(2, cell.w / 18)), inset = thick / 2;
    g.lineWidth = thick;
    eachCell((i, x, y) => {
      const group = outlineGroup(panel, base, x, y);
      if (group === -2) return;
      if (group === -1 && cell.w > 20) {
        g.strokeStyle = "rgba(255, 255, 255, .4)";
        g.strokeRect(x * cell.w + inset, y * cell.h + inset, cell.w - thick, cell.h - thick);
      }
      g.strokeStyle = group === -1 ? "#fff" : clusterColour(group, 0.9);
      const left = x * cell.w, top = y * cell.h, right = left + cell.w, bottom = top + cell.h;
      const line = (x0, y0, x1, y1) => { g.moveTo(x0, y0); g.lineTo(x1, y1); };
      g.beginPath();
      if (outlineGroup(panel, base, x - 1, y) !== group) line(left + inset, top, left + inset, bottom);
      if (outlineGroup(panel, base, x + 1, y) !== group) line(right - inset, top, right - inset, bottom);
      if (outlineGroup(panel, base, x, y - 1) !== group) line(left, top + inset, right, top + inset);
      if (outlineGroup(panel, base, x, y + 1) !== group) line(left, bottom - inset, right, bottom - inset);
      g.stroke();
    });
  }
  function drawHover(g, panel, base, cell) {
    if (show.hover < 0) return;
    const token = panel.token[show.hover];
    g.lineWidth = 3; g.strokeStyle = "#ffe94a";
    eachCell((i, x, y) => {
      const same = token >= 0 && panel.token[base + i] === token;
      if (same || base + i === show.hover) g.strokeRect(x * cell.w + 1.5, y * cell.h + 1.5, cell.w - 3, cell.h - 3);
    });
  }

  function drawTime() {
    const canvas = part("time"), panel = story.panels[show.panel], ratio = window.devicePixelRatio || 1;
    const width = canvas.clientWidth, height = canvas.clientHeight, bars = 42;
    canvas.width = width * ratio; canvas.height = height * ratio;
    const g = canvas.getContext("2d"); g.scale(ratio, ratio);
    const most = Math.max(1, ...panel.kept), now = stepOf(show.frame);
    panel.kept.forEach((count, t) => {
      const tall = Math.max(1, (bars - 4) * count / most), gap = T > 200 ? 0 : 1;
      g.fillStyle = t === now ? "#346ed6" : "#aabad6";
      g.fillRect(t * width / T + gap, bars - tall, Math.max(1, width / T - 2 * gap), tall);
    });
    if (!panel.segment) return;
    g.textAlign = "center"; g.textBaseline = "middle"; g.font = "11px system-ui, sans-serif";
    for (let first = 0, number = 0; first < T; number++) {
      let last = first; while (last < T && panel.segment[last] === panel.segment[first]) last++;
      const left = first * width / T, wide = (last - first) * width / T;
      g.fillStyle = number % 2 ? "#fadca0" : "#e8b254"; g.fillRect(left + 1, bars + 4, wide - 2, 15);
      g.fillStyle = "#5c3e08"; g.fillText(wide > 70 ? `segment ${number + 1}` : wide > 14 ? number + 1 : "", left + wide / 2, bars + 12);
      first = last;
    }
  }

  function drawText() {
    const panel = story.panels[show.panel], total = panel.counts[0][1];
    part("answer-box").hidden = panel.answer === null;
    part("answer").textContent = panel.answer;
    part("config").textContent = JSON.stringify(panel.config);
    part("counts").replaceChildren(...panel.counts.flatMap(([what, count]) => {
      const row = document.createElement("tr"), meter = document.createElement("tr");
      row.append(cellOf(what), cellOf(`${count.toLocaleString("en")} (${Math.round(100 * count / total)}%)`));
      const bar = document.createElement("td"), div = document.createElement("div"), fill = document.createElement("i");
      bar.colSpan = 2; div.className = "meter"; fill.style.width = 100 * count / total + "%";
      div.append(fill); bar.append(div); meter.append(bar);
      return [row, meter];
    }));
    part("clock").textContent = `frame ${show.frame + 1} of ${images.length}, ${story.seconds[show.frame].toFixed(1)} s`;
    part("slider").value = show.frame;
    part("view").setAttribute("aria-label", `frame ${show.frame + 1}, ${show.view}: ` +
      `${panel.kept[stepOf(show.frame)]} of ${H * W} cells of this step have a token in the prompt`);
    press("panels", show.panel); press("views", VIEWS.indexOf(show.view));
    part("views").children[1].disabled = !panel.heat;
    drawCellText(panel);
  }
  function cellOf(text) { const cell = document.createElement("td"); cell.textContent = text; return cell; }
  function drawCellText(panel) {
    if (show.hover < 0) { part("cell").textContent = "Point at a cell to see what became of it."; return; }
    const at = show.hover, token = panel.token[at], state = panel.state[at];
    const cells = token < 0 ? 1 : panel.token.reduce((sum, other) => sum + (other === token), 0);
    const steps = token < 0 ? 1 : new Set(Array.from(panel.token.keys()).filter(i => panel.token[i] === token).map(i => Math.floor(i / (H * W)))).size;
    let text = `Step ${Math.floor(at / (H * W))}, row ${Math.floor(at / W) % H}, column ${at % W}: ${STATE_NAMES[state]}.`;
    if (cells > 1) text += ` Its token stands for ${cells} cells in ${steps} step${steps > 1 ? "s" : ""}.`;
    if (panel.heat) text += ` Importance: ${(panel.heat[at] / 65535).toPrecision(2)} of the largest.`;
    part("cell").textContent = text;
  }
  function press(id, index) {
    Array.from(part(id).children).forEach((button, i) => button.setAttribute("aria-pressed", i === index));
  }
  function draw() { drawText(); drawView(); drawTime(); }

  function choose(changes) {
    Object.assign(show, changes);
    show.frame = Math.max(0, Math.min(images.length - 1, show.frame));
    if (!VIEWS.includes(show.view) || (show.view === "importance" && !story.panels[show.panel].heat)) show.view = "tokens";
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
  function pointAt(event) {
    const box = part("view").getBoundingClientRect();
    const x = Math.floor((event.clientX - box.left) / box.width * W), y = Math.floor((event.clientY - box.top) / box.height * H);
    return x < 0 || y < 0 || x >= W || y >= H ? -1 : stepOf(show.frame) * H * W + y * W + x;
  }

  const frames = story.framesPerStep > 1 ? ` (${story.framesPerStep} frames)` : "";
  part("help").textContent = `Bars: tokens kept with a position in each step${frames}. Strip: temporal segments of stage 1. ` +
    "Keys: left and right for frames, 1-9 for configurations, space to play. Point at a cell to see all it was merged with.";
  part("slider").max = images.length - 1;
  addButtons("panels", story.panels.map(panel => panel.label), panel => choose({ panel }));
  addButtons("views", VIEWS, i => choose({ view: VIEWS[i] }));
  part("slider").addEventListener("input", event => choose({ frame: Number(event.target.value) }));
  part("play").addEventListener("click", play);
  part("time").addEventListener("click", event => {
    const box = part("time").getBoundingClientRect();
    choose({ frame: Math.floor((event.clientX - box.left) / box.width * T) * story.framesPerStep });
  });
  part("view").addEventListener("mousemove", event => {
    const hover = pointAt(event);
    if (hover !== show.hover) choose({ hover });
  });
  part("view").addEventListener("mouseleave", () => choose({ hover: -1 }));
  const pressKey = event => {
    if (["INPUT", "TEXTAREA", "SELECT", "VIDEO"].includes(event.target.tagName)) return;
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

// A frame that is not decoded yet could not be drawn.
async function loadImage(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  return image;
}
