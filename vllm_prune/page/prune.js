"use strict";
// The page /prune: one question asked with and without pruning, and the cells that were kept.

// A preset says nothing of images.
const UNPRUNED = { preset: "baseline", image: false };
const PICTURE_CHOICES = {
  "dpp, 50%": { image: { method: "dpp", keep_ratio: 0.5 } },
  "dpp, 25%": { image: { method: "dpp", keep_ratio: 0.25 } },
  "the question, 25%": { image: { method: "attention", keep_ratio: 0.25 } },
};
const OWN = "", CUSTOM = "custom", SAMPLES = "v1/prune/samples";
const byId = id => document.getElementById(id);
const page = { url: null, isPicture: false, name: "", server: null, model: null, viewer: null, samples: null, busy: false };

function say(text) { byId("status").textContent = text; }
function headers() {
  const key = byId("key").value.trim();
  return { "Content-Type": "application/json", ...(key && { Authorization: `Bearer ${key}` }) };
}
async function problemOf(response) {
  if (response.status === 401) return "this server wants its API key";
  const text = await response.text();
  try { const found = JSON.parse(text); return found.error?.message ?? found.error ?? text; } catch { return text; }
}
async function getJson(path, body) {
  const options = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
  const response = await fetch(path, { headers: headers(), ...options });
  if (!response.ok) throw new Error(await problemOf(response));
  return response.json();
}

// ---- the server, and what it allows

async function askServer() {
  page.server = await getJson("v1/prune/server");
  page.model = (await getJson("v1/models")).data[0].id;
}
function describeServer(otherKind = false) {
  const server = page.server, select = byId("preset"), chosen = select.value;
  const own = Object.entries(server.presets).find(([, config]) => JSON.stringify(config) === JSON.stringify(server.config));
  const options = [[OWN, `as the server is set: ${own ? own[0] : "its own configuration"}`]];
  if (server.override !== "none") {
    options.push(...choicesOf(server).map(name => [name, name]));
    options.push([CUSTOM, "JSON ..."]);
  }
  select.replaceChildren(...options.map(([value, text]) => new Option(text, value)));
  const offered = wanted => options.some(([value]) => value === wanted);
  const first = page.isPicture ? Object.keys(PICTURE_CHOICES)[0] : "default";
  const stays = offered(chosen) && !(otherKind && chosen === OWN);
  select.value = stays ? chosen : keepsAll(server) && offered(first) ? first : OWN;
  byId("jsonField").hidden = select.value !== CUSTOM;
  showNote(noteOf(server));
}
function choicesOf(server) {
  if (page.isPicture) return server.override === "any" ? Object.keys(PICTURE_CHOICES) : [];
  return Object.keys(server.presets).filter(name => name !== UNPRUNED.preset);
}
function keepsAll(server) { return page.isPicture ? server.keeps_images : server.keeps_everything; }
function noteOf(server) {
  if (!server.prunes) return "This server runs a model without pruning: start it with `vllm-prune serve MODEL --prune-page`.";
  if (server.override === "any") return "";
  const free = "start it with `--prune-override any` to compare both here.";
  if (keepsAll(server)) return `This server prunes nothing, and requests may not change that: ${free}`;
  return `This server prunes every ${kind()} (--prune-override ${server.override}), so only the pruned side can be asked: ${free}`;
}
function showNote(text) {
  const parts = text.split("`").map((piece, i) => {
    const element = document.createElement(i % 2 ? "code" : "span");
    element.textContent = piece;
    return element;
  });
  byId("note").replaceChildren(...parts);
  byId("note").hidden = !text;
}
async function connect() {
  try { await askServer(); describeServer(); await offerSamples(); say(page.url ? "" : "Choose a video or a picture to begin."); }
  catch (error) { say(`The server cannot be asked: ${error.message}`); }
  enable();
}

// ---- the video or picture

function kind() { return page.isPicture ? "picture" : "video"; }
function readFile(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
}
async function takeFile(file) {
  if (!file) return;
  const url = await readFile(file);
  forgetSample();
  // A file whose kind the system does not know is sent as mp4: the server looks at its content.
  const was = page.isPicture;
  page.isPicture = /^data:image\//.test(url);
  page.url = page.isPicture || /^data:video\//.test(url) ? url : url.replace(/^data:[^;,]*/, "data:video/mp4");
  page.name = file.name;
  preview(file);
  byId("name").hidden = false;
  if (page.server && page.isPicture !== was) describeServer(true);
  byId("name").textContent = `${file.name}, ${(file.size / 2 ** 20).toFixed(file.size < 2 ** 20 ? 2 : 1)} MiB`;
  say("");
  enable();
}

function preview(file) {
  const shown = byId(page.isPicture ? "picture" : "preview"), other = byId(page.isPicture ? "preview" : "picture");
  for (const element of [shown, other]) if (element.src) URL.revokeObjectURL(element.src);
  other.hidden = true;
  shown.src = URL.createObjectURL(file);
  shown.hidden = false;
  if (!page.isPicture) shown.play().catch(() => {});
}

// ---- sample clips, with questions that they can be asked

async function offerSamples() {
  if (page.samples) return;
  page.samples = await getJson(SAMPLES);
  byId("sample").replaceChildren(new Option("choose one", ""), ...page.samples.map(clip => new Option(clip.title, clip.name)));
  byId("sampleField").hidden = !page.samples.length;
}
async function takeSample(name) {
  const clip = page.samples.find(known => known.name === name);
  if (!clip) return;
  try {
    const response = await fetch(`${SAMPLES}/${clip.name}`, { headers: headers() });
    if (!response.ok) throw new Error(await problemOf(response));
    await takeFile(new File([await response.blob()], `${clip.name}.mp4`, { type: "video/mp4" }));
  } catch (error) { say(`The clip cannot be had: ${error.message}`); return; }
  byId("sample").value = name; // what takeFile takes away
  byId("questions").replaceChildren(...clip.questions.map(question => new Option(question)));
  byId("question").value = clip.questions[0];
}
function forgetSample() { byId("sample").value = ""; byId("questions").replaceChildren(); }

function enable() { byId("go").disabled = page.busy || !page.url || !page.server; }

// ---- asking

function prunings() {
  const choice = byId("preset").value;
  const asked = choice === CUSTOM ? JSON.parse(byId("json").value) : choice === OWN ? null : PICTURE_CHOICES[choice] ?? choice;
  const canUnprune = page.server.override === "any" || keepsAll(page.server);
  const full = keepsAll(page.server) ? null : UNPRUNED;
  return { asked, full, canUnprune };
}
function withKey(prune, key) {
  // Names the trace of this request, so that this page alone can ask for its cells.
  if (!key) return prune;
  return { ...(typeof prune === "string" ? { preset: prune } : prune), trace_key: key };
}
function randomKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), byte => byte.toString(16).padStart(2, "0")).join("");
}
function requestOf(prune, question) {
  // An identity of its own for every request: nothing of the other side's is reused, so that times can be compared.
  const type = page.isPicture ? "image_url" : "video_url";
  const medium = { type, [type]: { url: page.url }, uuid: `page-${randomKey()}` };
  return {
    model: page.model,
    messages: [{ role: "user", content: [medium, { type: "text", text: question }] }],
    max_completion_tokens: Number(byId("length").value) || 64,
    temperature: 0,
    stream: true,
    stream_options: { include_usage: true },
    return_token_ids: true,
    ...(prune !== null && { mm_processor_kwargs: { prune } }),
  };
}
async function* eventsOf(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data: ") && line !== "data: [DONE]") yield JSON.parse(line.slice(6));
  }
}
async function ask(side, prune, question) {
  const said = side.querySelector("[data-is=said]"), body = JSON.stringify(requestOf(prune, question));
  said.textContent = "..."; said.classList.remove("problem");
  const found = { text: "", first: null, usage: null }, begin = performance.now();
  const response = await fetch("v1/chat/completions", { method: "POST", headers: headers(), body });
  if (!response.ok) throw new Error(await problemOf(response));
  for await (const event of eventsOf(response)) {
    if (event.error) throw new Error(event.error.message);
    const choice = event.choices?.[0], more = choice?.delta?.content;
    if (found.first === null && (more || choice?.token_ids?.length)) found.first = performance.now() - begin;
    if (more) { found.text += more; said.textContent = found.text; }
    if (event.usage) found.usage = event.usage;
    if (event.prune) found.report = event.prune;
  }
  found.total = performance.now() - begin;
  said.textContent = found.text.trim() || "(an empty answer)";
  return found;
}
async function tryAsk(side, prune, question) {
  try { return await ask(side, prune, question); }
  catch (error) { tell(side, error.message); return null; }
}
function tell(side, problem) {
  const said = side.querySelector("[data-is=said]");
  said.textContent = problem; said.classList.add("problem");
}
async function compare() {
  const question = byId("question").value.trim() || byId("question").placeholder;
  let wanted;
  try { wanted = prunings(); } catch (error) { say(`The configuration is not valid JSON: ${error.message}`); return; }
  const { asked, full, canUnprune } = wanted;
  page.busy = true; enable(); forget();
  try {
    await askServer(); describeServer();
    let before = null;
    if (canUnprune) { say("Asking without pruning ..."); before = await tryAsk(byId("full"), full, question); }
    else tell(byId("full"), "This server does not let a request keep everything; see the note above.");
    say("Asking with pruning ...");
    const key = page.server.traces ? randomKey() : null;
    const after = await tryAsk(byId("pruned"), withKey(asked, key), question);
    if (before) fill(byId("full"), before, null);
    if (after) { fill(byId("pruned"), after, before); await showCells(asked, key); }
    byId("how").hidden = !(before || after);
    say("");
  } catch (error) { say(error.message); }
  page.busy = false; enable();
  document.documentElement.dataset.asked = String(Number(document.documentElement.dataset.asked || 0) + 1);
}
function forget() {
  for (const side of [byId("full"), byId("pruned")]) {
    side.querySelector("[data-is=said]").textContent = "";
    side.querySelector("[data-is=said]").classList.remove("problem");
    side.querySelector("[data-is=table]").replaceChildren();
    side.querySelector("h2 span").textContent = "";
  }
  byId("how").hidden = byId("cells").hidden = true;
}

// ---- what came of it

function fill(side, found, before) {
  const counts = found.usage?.prompt_tokens_details?.multimodal_tokens ?? {};
  const kept = page.isPicture ? counts.image : counts.video, rows = [];
  const all = (page.isPicture ? counts.image_before_pruning : counts.video_before_pruning) ?? kept;
  rows.push([`tokens of the ${kind()}`, `${number(kept)} of ${number(all)}`, kept / all]);
  const shown = found.report?.videos?.[0]?.frames;
  if (shown) rows.push(["frames of the video", `${number(shown.seen)} of ${number(shown.of)}`, null]);
  if (counts.video_structure) rows.push(["text between its steps", number(counts.video_structure), null]);
  rows.push(["prompt tokens", number(found.usage.prompt_tokens), null, before && change(found.usage.prompt_tokens, before.usage.prompt_tokens, "fewer", "more")]);
  rows.push(["time to the first token", seconds(found.first), null, before && change(found.first, before.first, "less", "more")]);
  rows.push(["until the answer was there", seconds(found.total), null, before && change(found.total, before.total, "less", "more")]);
  side.querySelector("[data-is=table]").replaceChildren(...rows.flatMap(rowsOf));
  if (side.id === "pruned") side.querySelector("h2 span").textContent = byId("preset").selectedOptions[0].textContent;
}
function number(value) { return value === undefined ? "?" : value.toLocaleString("en"); }
function seconds(ms) { return ms === null ? "?" : ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(2)} s`; }
function change(now, then, less, more) {
  const share = Math.round(100 * (now / then - 1));
  return share === 0 ? null : [`${Math.abs(share)}% ${share < 0 ? less : more}`, share < 0 ? "gain" : "loss"];
}
function rowsOf([what, value, share, gain]) {
  const row = document.createElement("tr"), name = document.createElement("td"), cell = document.createElement("td");
  name.textContent = what;
  if (gain) {
    const mark = document.createElement("span");
    mark.className = gain[1]; mark.textContent = gain[0];
    cell.append(mark, " ");
  }
  cell.append(value);
  row.append(name, cell);
  if (share === null || Number.isNaN(share)) return [row];
  const meter = document.createElement("tr"), wide = document.createElement("td");
  wide.colSpan = 2; wide.innerHTML = '<div class="meter"><i></i></div>';
  wide.querySelector("i").style.width = `${100 * share}%`;
  meter.append(wide);
  return [row, meter];
}
async function showCells(prune, key) {
  page.viewer?.close();
  const facts = byId("cellsFacts");
  byId("cells").hidden = false;
  byId("viewer").replaceChildren();
  facts.textContent = "Drawing ...";
  try {
    const story = await getJson("v1/prune/cells", { video: page.url, prune, trace_key: key });
    const [T, H, W] = story.grid;
    const tokens = (T * H * W).toLocaleString("en"), side = story.tokenPixels;
    facts.textContent = page.isPicture
      ? `A grid of ${H} x ${W} = ${tokens} tokens; each covers ${side} x ${side} pixels.`
      : `${story.frames.length} frames sampled by the server, a grid of ${T} x ${H} x ${W} = ${tokens} tokens; ` +
        `each covers ${story.framesPerStep} frames x ${side} x ${side} pixels.`;
    page.viewer = await mountViewer(byId("viewer"), story);
    page.viewer.choose({});
  } catch (error) { facts.textContent = `The cells cannot be shown: ${error.message}`; }
}

// ---- events

// A browser may know fewer formats than the server.
byId("preview").addEventListener("error", () => {
  byId("preview").hidden = true;
  byId("hint").textContent = "This browser cannot play this video; the server may read it all the same.";
});
const drop = byId("drop");
for (const kind of ["dragenter", "dragover"]) drop.addEventListener(kind, event => { event.preventDefault(); drop.classList.add("over"); });
for (const kind of ["dragleave", "drop"]) drop.addEventListener(kind, () => drop.classList.remove("over"));
drop.addEventListener("drop", event => { event.preventDefault(); takeFile(event.dataTransfer.files[0]); });
byId("file").addEventListener("change", event => takeFile(event.target.files[0]));
byId("preset").addEventListener("change", () => { byId("jsonField").hidden = byId("preset").value !== CUSTOM; });
byId("sample").addEventListener("change", () => takeSample(byId("sample").value));
byId("key").addEventListener("change", connect);
byId("form").addEventListener("submit", event => { event.preventDefault(); if (!byId("go").disabled) compare(); });
connect();
