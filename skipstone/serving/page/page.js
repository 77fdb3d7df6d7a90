"use strict";
// Everything that comes from a server or a user is put in as text, never as HTML.
const at = (id) => document.getElementById(id);
const PARTIAL = 12;
const models = new Map();
const gallery = [];
const KEPT = 24;
let running = null;

function headers() {
  const key = at("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

function say(text, wrong = false) {
  at("status").textContent = text;
  at("status").className = wrong ? "error" : "";
}

function options(select, names) {
  select.replaceChildren(...names.map(([value, text]) => {
    const option = document.createElement("option");
    option.value = value;
    option.textContent = text;
    return option;
  }));
}

async function loadModels() {
  const answer = await fetch("v1/models", { headers: headers() });
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error.message);
  for (const model of content.data) models.set(model.id, model);
  options(at("model"), content.data.map((model) => [model.id, model.id]));
  showQualities();
}

function showQualities() {
  const model = models.get(at("model").value);
  if (!model) return;
  const found = Object.entries(model.qualities).map(([name, one]) => [name, `${name}: ${one.target}`]);
  options(at("quality"), [["auto", "auto: no promise"], ...found]);
  at("about").textContent = `${model.id}, ${model.size} pixels, ${model.policy}`;
}

function question() {
  const body = { prompt: at("prompt").value, model: at("model").value, stream: true, partial_images: PARTIAL, trace: true };
  if (at("seed").value !== "") body.seed = Number(at("seed").value);
  if (at("negative").value.trim()) body.negative_prompt = at("negative").value;
  if (at("policy").value.trim()) body.policy = at("policy").value.trim();
  else body.quality = at("quality").value;
  return body;
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const line = text.slice(0, end).split("\n").find((one) => one.startsWith("data: "));
      text = text.slice(end + 2);
      if (line) yield JSON.parse(line.slice(6));
    }
  }
}

async function draw(event) {
  event.preventDefault();
  if (running) { running.abort(); return; }
  running = new AbortController();
  at("draw").textContent = "Stop";
  const body = question();
  say("Waiting ...");
  try {
    const answer = await fetch("v1/images/generations", {
      method: "POST", signal: running.signal, body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", ...headers() },
    });
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    for await (const news of events(answer)) {
      if (news.error) throw new Error(news.error.message);
      if (news.type === "image_generation.partial_image") showPartial(news, body.prompt);
      else finish(news, body);
    }
  } catch (error) {
    say(error.name === "AbortError" ? "Stopped." : error.message, error.name !== "AbortError");
  } finally {
    running = null;
    at("draw").textContent = "Draw";
  }
}

function showPicture(data, prompt) {
  at("result").hidden = false;
  at("picture").src = `data:image/png;base64,${data}`;
  at("picture").alt = prompt;
}

function showPartial(news, prompt) {
  showPicture(news.b64_json, prompt);
  say(`${news.calls} calls, ${Math.round(100 * news.share)} % of the way`);
}

function finish(news, body) {
  say(`Drawn in ${(news.total_ms / 1000).toFixed(2)} s, ${(news.queued_ms / 1000).toFixed(2)} s of them waiting.`);
  show(news, body);
  gallery.unshift({ news, body });
  gallery.length = Math.min(gallery.length, KEPT);
  showGallery();
}

function show(news, body) {
  showPicture(news.b64_json, body.prompt);
  const share = 1 - news.calls / news.full_calls;
  at("saved").textContent = `${news.calls} of ${news.full_calls} calls, ${Math.round(100 * share)} % saved`;
  showTimeline(news.trace.run);
  const rows = { Prompt: body.prompt, Seed: news.seed, Setting: news.policy, Certificate: news.certificate ?? "none", Promise: news.promise };
  at("facts").replaceChildren(...Object.entries(rows).flatMap(([name, value]) => {
    const term = document.createElement("dt");
    const text = document.createElement("dd");
    term.textContent = name;
    text.textContent = value;
    return [term, text];
  }));
}

function kindOf(attempt) {
  if (attempt.accepted === false) return "rejected";
  const how = attempt.plan.evaluate.kind ?? "full";
  return how === "forecast" || how === "finish" ? how : "call";
}

function place(grid, t) {
  for (let i = 0; i + 1 < grid.length; i += 1) {
    if (t >= grid[i + 1]) return i + Math.max(0, (grid[i] - t) / (grid[i] - grid[i + 1]));
  }
  return grid.length - 1;
}

function showTimeline(run) {
  const steps = run.grid.length - 1;
  // A rejected attempt whose retry uses its call is not shown: nothing was lost by it.
  const isReused = (attempt, after) => attempt.accepted === false && after && after.t === attempt.t && after.cost === 0;
  const kept = run.past.filter((attempt, k) => !isReused(attempt, run.past[k + 1]));
  at("timeline").replaceChildren(...kept.map((attempt) => {
    const bar = document.createElement("span");
    const from = place(run.grid, attempt.t);
    bar.className = kindOf(attempt);
    bar.style.left = `${(100 * from) / steps}%`;
    bar.style.width = `${(100 * (place(run.grid, attempt.t_next) - from)) / steps}%`;
    return bar;
  }));
  at("timeline").setAttribute("aria-label", `${kept.length} steps on a grid of ${steps}`);
  at("key-of-timeline").textContent =
    `From noise (left) to picture (right) on a grid of ${steps} steps; each bar begins with a call of the network.`;
}

function showGallery() {
  at("gallery-title").hidden = gallery.length === 0;
  at("gallery").replaceChildren(...gallery.map(({ news, body }) => {
    const item = document.createElement("li");
    const button = document.createElement("button");
    const picture = document.createElement("img");
    button.type = "button";
    picture.src = `data:image/png;base64,${news.b64_json}`;
    picture.alt = body.prompt;
    button.title = `${body.prompt}, seed ${news.seed}`;
    button.append(picture);
    button.addEventListener("click", () => show(news, body));
    item.append(button);
    return item;
  }));
}

at("form").addEventListener("submit", draw);
at("model").addEventListener("change", showQualities);
at("key").addEventListener("change", () => loadModels().catch((error) => say(error.message, true)));
loadModels().catch((error) => say(error.message, true));
