"use strict";
// How the cells of a frame and the time line are drawn. `panel` is one configuration of a story, unpacked by `unpack`.

const KEPT = 0, MERGED = 1, DROPPED = 2;
const HEAT = [[8, 8, 24], [70, 16, 96], [186, 40, 84], [246, 128, 40], [252, 244, 164]];
const NUMBER_ROOM = 26; // pixels of a cell from which on the number of its group can be read in it
const BARS = 42; // height of the time line's bars

// The arrays of a panel from their bytes, and what follows from them.
function unpack(panel, [T, H, W]) {
  const bytesOf = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;
  panel.state = new Uint8Array(bytesOf(panel.state));
  panel.token = new Int32Array(bytesOf(panel.token));
  panel.anchor = new Uint8Array(bytesOf(panel.anchor));
  panel.heat = panel.heat && new Uint16Array(bytesOf(panel.heat));
  panel.kept = Array.from({ length: T }, (_, t) => panel.anchor.subarray(t * H * W, (t + 1) * H * W).reduce((a, b) => a + b, 0));
  if (panel.heat) panel.hottest = Math.max(1, Array.from(panel.heat).sort((a, b) => a - b)[Math.floor(0.99 * (T * H * W - 1))]);
  panel.group = numberGroups(panel);
}

// token -> 1, 2, ...: merged tokens in the order in which they come, so that numbers stay small.
function numberGroups(panel) {
  const numbers = new Map();
  panel.state.forEach((state, at) => {
    if (state === MERGED && !numbers.has(panel.token[at])) numbers.set(panel.token[at], numbers.size + 1);
  });
  return numbers;
}

function clusterColour(token, alpha) {
  const light = 55 + 10 * (token % 3 - 1);
  return `hsla(${(token * 0.61803398875 % 1) * 360}, 85%, ${light}%, ${alpha})`;
}

function heatColour(x) {
  const at = Math.min(0.9999, x) * (HEAT.length - 1), i = Math.floor(at), f = at - i;
  return `rgb(${HEAT[i].map((low, c) => Math.round(low + f * (HEAT[i + 1][c] - low))).join(",")})`;
}

// A frame's cells. `at`: {base, W, H, w, h}: the index of the step's first cell, columns, rows, a cell's size in pixels.
function eachCell(at, draw) { for (let i = 0; i < at.H * at.W; i++) draw(at.base + i, i % at.W, Math.floor(i / at.W)); }

function drawHeat(g, panel, at) {
  g.globalAlpha = 0.8;
  eachCell(at, (i, x, y) => {
    g.fillStyle = heatColour(Math.sqrt(Math.min(1, panel.heat[i] / panel.hottest)));
    g.fillRect(x * at.w, y * at.h, at.w + 0.5, at.h + 0.5);
  });
  g.globalAlpha = 1;
}

function drawTokens(g, panel, at, image) {
  const dropped = new Path2D();
  eachCell(at, (i, x, y) => { if (panel.state[i] >= DROPPED) dropped.rect(x * at.w, y * at.h, at.w + 0.5, at.h + 0.5); });
  g.save(); g.clip(dropped); g.filter = "grayscale(1) brightness(.33)";
  g.drawImage(image, 0, 0, at.w * at.W, at.h * at.H); g.restore();
  eachCell(at, (i, x, y) => {
    if (panel.state[i] !== MERGED) return;
    g.fillStyle = clusterColour(panel.token[i], 0.28);
    g.fillRect(x * at.w, y * at.h, at.w, at.h);
  });
  drawOutlines(g, panel, at);
  drawAnchors(g, panel, at);
  drawGroups(g, panel, at);
}

function drawAnchors(g, panel, at) {
  const radius = Math.max(1.5, Math.min(at.w, at.h) * 0.12);
  eachCell(at, (i, x, y) => {
    if (!panel.anchor[i] || panel.state[i] !== MERGED) return;
    g.beginPath(); g.arc((x + 0.5) * at.w, (y + 0.5) * at.h, radius, 0, 7);
    g.fillStyle = "#fff"; g.strokeStyle = "#222"; g.lineWidth = 1; g.fill(); g.stroke();
  });
}

// What tells groups apart without colour: their number, or, where there is no room for it, lines in one of four directions.
function drawGroups(g, panel, at) {
  const side = Math.min(at.w, at.h), size = Math.min(20, 0.3 * side + 3);
  g.font = `600 ${size}px system-ui, sans-serif`; g.textAlign = "left"; g.textBaseline = "top";
  eachCell(at, (i, x, y) => {
    if (panel.state[i] !== MERGED) return;
    const number = panel.group.get(panel.token[i]);
    if (side < NUMBER_ROOM) { drawHatch(g, number % 4, x * at.w, y * at.h, at.w, at.h); return; }
    g.lineWidth = 3; g.strokeStyle = "rgba(0, 0, 0, .75)"; g.fillStyle = "#fff"; g.lineJoin = "round";
    g.strokeText(number, x * at.w + 4, y * at.h + 4); g.fillText(number, x * at.w + 4, y * at.h + 4);
  });
}

function drawHatch(g, kind, left, top, w, h) {
  g.save(); g.beginPath(); g.rect(left, top, w, h); g.clip();
  g.beginPath(); g.lineWidth = 1; g.strokeStyle = "rgba(255, 255, 255, .75)";
  const gap = Math.max(3, Math.min(w, h) / 3);
  for (let d = -h; d < w + h; d += gap) {
    if (kind === 0) { g.moveTo(left, top + d); g.lineTo(left + w, top + d); }
    if (kind === 1) { g.moveTo(left + d, top); g.lineTo(left + d, top + h); }
    if (kind === 2) { g.moveTo(left + d, top); g.lineTo(left + d + h, top + h); }
    if (kind === 3) { g.moveTo(left + d, top + h); g.lineTo(left + d + h, top); }
  }
  g.stroke(); g.restore();
}

function outlineGroup(panel, at, x, y) {
  if (x < 0 || y < 0 || x >= at.W || y >= at.H) return -3;
  const i = at.base + y * at.W + x;
  return panel.state[i] === MERGED ? panel.token[i] : panel.state[i] === KEPT ? -1 : -2;
}

function drawOutlines(g, panel, at) {
  const thick = Math.max(1, Math.min(2, at.w / 18)), inset = thick / 2;
  g.lineWidth = thick;
  eachCell(at, (i, x, y) => {
    const group = outlineGroup(panel, at, x, y);
    if (group === -2) return;
    if (group === -1 && at.w > 20) {
      g.strokeStyle = "rgba(255, 255, 255, .4)";
      g.strokeRect(x * at.w + inset, y * at.h + inset, at.w - thick, at.h - thick);
    }
    g.strokeStyle = group === -1 ? "#fff" : clusterColour(group, 0.9);
    const left = x * at.w, top = y * at.h, right = left + at.w, bottom = top + at.h;
    const line = (x0, y0, x1, y1) => { g.moveTo(x0, y0); g.lineTo(x1, y1); };
    g.beginPath();
    if (outlineGroup(panel, at, x - 1, y) !== group) line(left + inset, top, left + inset, bottom);
    if (outlineGroup(panel, at, x + 1, y) !== group) line(right - inset, top, right - inset, bottom);
    if (outlineGroup(panel, at, x, y - 1) !== group) line(left, top + inset, right, top + inset);
    if (outlineGroup(panel, at, x, y + 1) !== group) line(left, bottom - inset, right, bottom - inset);
    g.stroke();
  });
}

// The chosen cell and all that share its token: yellow on black, seen on any picture.
function drawChosen(g, panel, at, chosen) {
  const token = panel.token[chosen];
  eachCell(at, (i, x, y) => {
    if (i !== chosen && (token < 0 || panel.token[i] !== token)) return;
    for (const [width, colour] of [[5, "#000"], [3, "#ffe94a"]]) {
      g.lineWidth = width; g.strokeStyle = colour;
      g.strokeRect(x * at.w + 2.5, y * at.h + 2.5, at.w - 5, at.h - 5);
    }
  });
}

function drawTime(canvas, panel, now) {
  const ratio = window.devicePixelRatio || 1, T = panel.kept.length;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio; canvas.height = height * ratio;
  const g = canvas.getContext("2d"); g.scale(ratio, ratio);
  const most = Math.max(1, ...panel.kept);
  panel.kept.forEach((count, t) => {
    const tall = Math.max(1, (BARS - 4) * count / most), gap = T > 200 ? 0 : 1;
    g.fillStyle = t === now ? "#346ed6" : "#aabad6";
    g.fillRect(t * width / T + gap, BARS - tall, Math.max(1, width / T - 2 * gap), tall);
  });
  if (panel.segment) drawSegments(g, panel.segment, width / T);
}

function drawSegments(g, segment, step) {
  g.textAlign = "center"; g.textBaseline = "middle"; g.font = "11px system-ui, sans-serif";
  for (let first = 0, number = 0; first < segment.length; number++) {
    let last = first; while (last < segment.length && segment[last] === segment[first]) last++;
    const left = first * step, wide = (last - first) * step;
    g.fillStyle = number % 2 ? "#fadca0" : "#e8b254"; g.fillRect(left + 1, BARS + 4, wide - 2, 15);
    g.fillStyle = "#5c3e08"; g.fillText(wide > 70 ? `segment ${number + 1}` : wide > 14 ? number + 1 : "", left + wide / 2, BARS + 12);
    first = last;
  }
}
