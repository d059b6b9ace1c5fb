"use strict";
// Asks /stats each second and shows the answer. Every figure stands in an element with the path of its value in the answer
// (data-path), so that what is shown is one answer and nothing else; text goes in as text, never as markup.

const PERIOD_MS = 1000;
const HISTORY = 120;
const SVG = "http://www.w3.org/2000/svg";
const byId = (id) => document.getElementById(id);
const history = [];
let before = null;

const digits = (value) => value.toFixed(value >= 100 ? 0 : value >= 10 ? 1 : 2);
const steps = (value, names, step) => {
  let at = 0;
  while (value >= step && at + 1 < names.length) { value /= step; at += 1; }
  return `${at === 0 && Number.isInteger(value) ? value : digits(value)} ${names[at]}`;
};
const forms = {
  word: (value) => String(value),
  count: (value) => value.toLocaleString("en-US"),
  bytes: (value) => steps(value, ["B", "KiB", "MiB", "GiB", "TiB"], 1024),
  share: (value) => `${(100 * value).toFixed(1)} %`,
  time: (value) => steps(value, ["µs", "ms", "s"], 1000),
  age: (ms) => {
    const seconds = Math.floor(ms / 1000);
    const [days, hours, minutes] = [Math.floor(seconds / 86400), Math.floor(seconds / 3600) % 24, Math.floor(seconds / 60) % 60];
    return days ? `${days} d ${hours} h` : hours ? `${hours} h ${minutes} min` : minutes ? `${minutes} min ${seconds % 60} s` : `${seconds} s`;
  },
};

const at = (answer, path) => path.split(".").reduce((value, name) => (value === null || value === undefined ? null : value[name]), answer);

function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

const figure = (path, form) => element("td", { "data-path": path, "data-form": form });
const head = (text) => element("th", { scope: "row" }, text);

// A bar from one share of its width to another; what it says stands in figures beside it.
function bar(from, to, kind) {
  const svg = shape("svg", { class: "track", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" });
  const clamp = (share) => Math.min(1, Math.max(0, share || 0));
  svg.append(shape("rect", { class: "rail", x: 0, y: 0, width: 100, height: 10 }));
  svg.append(shape("rect", { class: kind, x: 100 * clamp(from), y: 0, width: Math.max(0, 100 * (clamp(to) - clamp(from))), height: 10 }));
  return element("td", {}, svg);
}

function rows(id, made, otherwise) {
  const body = byId(id);
  const columns = body.parentElement.querySelectorAll("thead th").length;
  body.replaceChildren(...(made.length ? made : [element("tr", {}, element("td", { colspan: columns }, otherwise))]));
}

function tiers(answer) {
  const made = Object.keys(answer.tiers).filter((tier) => answer.tiers[tier]).sort((a, b) => (a === "host" ? -1 : b === "host" ? 1 : 0));
  rows("tiers", made.map((tier) => {
    const fill = bar(0, answer.tiers[tier].fill, tier);
    fill.append(element("span", { "data-path": `tiers.${tier}.fill`, "data-form": "share" }));
    return element("tr", {}, head(tier), fill, figure(`tiers.${tier}.used_bytes`, "bytes"), figure(`tiers.${tier}.budget_bytes`, "bytes"),
      figure(`tiers.${tier}.blocks`, "count"), figure(`evictions.${tier}`, "count"));
  }), "none");
  const disk = answer.tiers.disk;
  const line = byId("disk-line");
  line.textContent = disk && disk.state !== "ready" ? `disk ${disk.state}${disk.reason ? `: ${disk.reason}` : ""}` : "";
  line.className = disk && disk.state === "offline" ? "alarm" : "";
}

const sorted = (counts) => Object.entries(counts).filter(([, count]) => count > 0).sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));

function shares(id, counts, path, form, kind, otherwise) {
  const total = counts.reduce((sum, [, count]) => sum + count, 0);
  rows(id, counts.map(([name, count]) => element("tr", {}, head(name.replaceAll("_", " ")), bar(0, count / total, kind), figure(path(name), form))), otherwise);
}

function saved(answer) {
  const counts = sorted({ sharing: answer.saved.sharing_bytes, ...answer.saved.form_bytes });
  shares("saved", counts, (name) => (name === "sharing" ? "saved.sharing_bytes" : `saved.form_bytes.${name}`), "bytes", "disk", "nothing yet");
}

function latency(answer) {
  const place = (us) => Math.log10(Math.max(1, us)) / 7;
  const used = Object.entries(answer.latency.operations).filter(([, times]) => times.count > 0);
  rows("latency", used.map(([name, times]) => element("tr", {}, head(name), bar(place(times.p50_us), place(times.p99_us) + 0.01, "host"),
    ...["p50_us", "p90_us", "p99_us"].map((which) => figure(`latency.operations.${name}.${which}`, "time")),
    figure(`latency.operations.${name}.count`, "count"))), "no calls yet");
}

function clients(answer) {
  rows("clients", answer.clients.connected.map((client, index) => {
    const path = (name) => `clients.connected.${index}.${name}`;
    return element("tr", {}, element("th", { scope: "row", "data-path": path("name"), "data-form": "word" }), figure(path("pid"), "word"),
      figure(path("leases"), "count"), figure(path("reservations"), "count"), figure(path("staging_bytes"), "bytes"));
  }), "nobody");
}

// What became of the tokens that were asked for since the last answer; null where none were.
function sample(answer) {
  if (before === null || before.daemon !== answer.daemon) return null;
  const grown = (path) => at(answer, path) - at(before, path);
  const asked = grown("requested.tokens");
  return asked > 0 ? { host: grown("hits.host.tokens") / asked, disk: grown("hits.disk.tokens") / asked } : null;
}

function drawHistory(answer) {
  history.push(sample(answer));
  if (history.length > HISTORY) history.shift();
  const width = 480 / HISTORY;
  const bars = [];
  history.forEach((share, index) => {
    if (share === null) return;
    const x = (HISTORY - history.length + index) * width;
    let y = 120;
    for (const [kind, part] of [["host", share.host], ["disk", share.disk], ["missed", 1 - share.host - share.disk]]) {
      const height = 120 * Math.min(1, Math.max(0, part));
      y -= height;
      bars.push(shape("rect", { class: kind, x, y, width: width * 0.9, height }));
    }
  });
  byId("history").replaceChildren(...bars);
  const last = history.findLast((share) => share !== null);
  byId("history-text").textContent = last
    ? `share of the tokens asked for, second by second; last: host ${forms.share(last.host)}, disk ${forms.share(last.disk)}`
    : "no lookups yet";
}

function show(answer) {
  tiers(answer);
  shares("misses", sorted(answer.misses).slice(0, 6), (name) => `misses.${name}`, "count", "missed", "no misses yet");
  saved(answer);
  latency(answer);
  clients(answer);
  drawHistory(answer);
  for (const place of document.querySelectorAll("[data-path]")) {
    const value = at(answer, place.dataset.path);
    place.textContent = value === null || value === undefined ? "–" : forms[place.dataset.form](value);
  }
  byId("state").classList.toggle("alarm", answer.state !== "ready");
  document.documentElement.dataset.shown = answer.uptime_ms;
  before = answer;
}

function say(text, alarm) {
  const line = byId("line");
  // A status that is read out says a change, not every second.
  if (line.textContent !== text) line.textContent = text;
  line.classList.toggle("alarm", alarm);
}

async function ask() {
  try {
    const answer = await fetch("/stats", { cache: "no-store", signal: AbortSignal.timeout(5 * PERIOD_MS) });
    if (!answer.ok) throw new Error(`it answers ${answer.status}`);
    show(await answer.json());
    say("live", false);
  } catch (error) {
    say("the daemon does not answer; these are its last figures", true);
  }
  setTimeout(ask, PERIOD_MS);
}

ask();
