// The payload, and how numbers and categories look: colours and texts. Everything from outside goes on the page as text.

const data = JSON.parse(document.getElementById("payload").textContent);
const n = data.id.length;
const labelNamed = new Map(data.labels.map((label) => [label.name, label]));
const numbers = data.labels.filter((label) => label.kind === "number");
const origin = labelNamed.get("origin");

function element(name, properties = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children); // strings become text nodes, never markup
  return made;
}

function style(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function between(first, second, share) {
  const part = (colour, place) => parseInt(colour.slice(place, place + 2), 16);
  const mixed = [1, 3, 5].map((place) => Math.round(part(first, place) + share * (part(second, place) - part(first, place))));
  return `rgb(${mixed.join(",")})`;
}

function ramp(stops, share) {
  const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const below = Math.min(Math.floor(place), stops.length - 2);
  return between(stops[below], stops[below + 1], place - below);
}

function stopsOf(label) {
  return label.diverging ? data.colours.diverging : data.colours.sequential;
}

// A fixed number of steps, so that points of one colour are drawn in one go.
const STEPS = 64;

function stepOf(label, value) {
  const [low, high] = label.scale;
  return Math.round(Math.min(Math.max((value - low) / (high - low), 0), 1) * (STEPS - 1));
}

function categoryColour(place) {
  return data.colours.categories[place] ?? style("--other");
}

// The colour of a task: a key by which points are drawn together, and what it stands for.
function colourKey(label, task) {
  const value = label.values[task];
  if (value === null) return -1;
  if (label.kind === "number") return stepOf(label, value);
  return value.length === 1 ? value[0] : 1000; // several codes
}

function colourOfKey(label, key) {
  if (key === -1) return style("--mute");
  if (label.kind === "number") return ramp(stopsOf(label), key / (STEPS - 1));
  return key === 1000 ? style("--ink") : categoryColour(key);
}

function shortNumber(value) {
  if (value === null || value === undefined) return "";
  const size = Math.abs(value);
  if (size !== 0 && (size >= 1e5 || size < 1e-3)) return value.toExponential(1);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : 3).replace("-", "−");
}

function interval(label, task) {
  const low = label.low?.[task] ?? null;
  const high = label.high?.[task] ?? null;
  return low === null || high === null ? "" : ` [${shortNumber(low)}, ${shortNumber(high)}]`;
}

function valueText(label, task) {
  const value = label.values[task];
  if (value === null) return "";
  if (label.kind === "number") return shortNumber(value) + interval(label, task);
  if (label.kind === "text") return value;
  return value.map((place) => label.categories[place]).join("; ");
}

function excerpt(task, length) {
  const text = data.text[task];
  if (text === null) return "(text not found)";
  return text.length > length ? `${text.slice(0, length)} …` : text;
}
