// What is shown: search, filters by any label, a view, the chosen task. All of it is in the address after #.

const state = {
  colour: "", across: "", up: "", query: "", view: "", task: null, tab: "tasks", sort: "", descending: true,
  ranges: new Map(), // label -> [low, high], either may be null
  chosen: new Map(), // label -> Set of categories
};
const startColour = (numbers[0] ?? data.labels.find((label) => label.kind !== "text"))?.name ?? "";
state.colour = startColour;

const searched = data.id.map((id, task) => {
  const more = data.labels.filter((label) => label.kind === "text").map((label) => label.values[task] ?? "");
  return [id, data.text[task] ?? "", ...more].join("\n").toLowerCase();
});
let shown = Array.from({ length: n }, (_, task) => task); // tasks that pass, in their order
let isShown = new Uint8Array(n).fill(1);

function passes(label, task) {
  const range = state.ranges.get(label.name);
  const value = label.values[task];
  if (range) return value !== null && (range[0] === null || value >= range[0]) && (range[1] === null || value <= range[1]);
  const chosen = state.chosen.get(label.name);
  return value !== null && value.some((place) => chosen.has(label.categories[place]));
}

function applyFilters() {
  const words = state.query.toLowerCase().split(/\s+/).filter(Boolean);
  const view = data.views.find((each) => each.name === state.view);
  const inView = view ? new Set(view.members) : null;
  const filtering = [...state.ranges.keys(), ...state.chosen.keys()].map((name) => labelNamed.get(name));
  shown = [];
  isShown = new Uint8Array(n);
  for (let task = 0; task < n; task++) {
    if (inView && !inView.has(task)) continue;
    if (!words.every((word) => searched[task].includes(word))) continue;
    if (!filtering.every((label) => passes(label, task))) continue;
    shown.push(task);
    isShown[task] = 1;
  }
}

function clearFilters() {
  state.ranges.clear();
  state.chosen.clear();
  state.query = "";
  state.view = "";
}

function toggleCategory(label, name) {
  const chosen = state.chosen.get(label.name) ?? new Set();
  if (!chosen.delete(name)) chosen.add(name);
  if (chosen.size) state.chosen.set(label.name, chosen);
  else state.chosen.delete(label.name);
}

function setRange(label, low, high) {
  if (low === null && high === null) state.ranges.delete(label.name);
  else state.ranges.set(label.name, [low, high]);
}

// ---- the address

function writeHash() {
  const parts = new URLSearchParams();
  const keep = (key, value, usual) => { if (value !== usual) parts.append(key, value); };
  keep("colour", state.colour, startColour);
  keep("across", state.across, startAcross);
  keep("up", state.up, startUp);
  keep("q", state.query, "");
  keep("view", state.view, "");
  keep("tab", state.tab, "tasks");
  if (state.sort) parts.append("sort", `${state.descending ? "-" : "+"}${state.sort}`);
  if (state.task !== null) parts.append("task", data.id[state.task]);
  for (const [name, range] of state.ranges) parts.append(`from-to.${name}`, range.map((end) => end ?? "").join(".."));
  for (const [name, chosen] of state.chosen) for (const each of chosen) parts.append(`is.${name}`, each);
  const hash = parts.toString();
  if (location.hash.slice(1) !== hash) history.replaceState(null, "", `#${hash}`);
}

function readHash() {
  const parts = new URLSearchParams(location.hash.slice(1));
  const known = (name, kinds, usual) => (name !== null && kinds.includes(labelNamed.get(name)?.kind) ? name : usual);
  state.colour = known(parts.get("colour"), ["number", "category", "codes"], startColour);
  state.across = known(parts.get("across"), ["number"], parts.get("across") === "" ? "" : startAcross);
  state.up = known(parts.get("up"), ["number"], parts.get("up") === "" ? "" : startUp);
  state.query = parts.get("q") ?? "";
  state.view = data.views.some((view) => view.name === parts.get("view")) ? parts.get("view") : "";
  state.tab = parts.get("tab") ?? "tasks";
  const sort = parts.get("sort") ?? "";
  state.sort = sort.slice(1);
  state.descending = sort[0] !== "+";
  const task = data.id.indexOf(parts.get("task"));
  state.task = task < 0 ? null : task;
  state.ranges.clear();
  state.chosen.clear();
  for (const [key, value] of parts) {
    const dot = key.indexOf(".");
    const label = labelNamed.get(key.slice(dot + 1));
    if (dot < 0 || !label) continue;
    if (key.startsWith("from-to.") && label.kind === "number") {
      const [low, high] = value.split("..").map(endOf);
      setRange(label, low, high ?? null);
    }
    if (key.startsWith("is.") && label.categories?.includes(value)) toggleCategory(label, value);
  }
}

function endOf(text) {
  const value = Number.parseFloat(text);
  return Number.isFinite(value) ? value : null;
}

// A map where there is one; else the first two labels.
const hasMap = data.x.some((each) => each !== null);
const startAcross = hasMap ? "" : numbers[0]?.name ?? "";
const startUp = hasMap ? "" : (numbers[1] ?? numbers[0])?.name ?? "";

// ---- out of the page

function csvCell(text) {
  const cell = /^[=+@\t\r-]/.test(text) && !/^-?[\d.]/.test(text) ? `'${text}` : text; // no formula for a spreadsheet to run
  return /[",\n\r]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}

function shownCsv() {
  const head = ["task_id"];
  for (const label of data.labels) {
    head.push(label.name);
    if (label.low) head.push(`${label.name} low`, `${label.name} high`);
  }
  const rows = shown.map((task) => {
    const row = [data.id[task]];
    for (const label of data.labels) {
      const value = label.values[task];
      row.push(value === null ? "" : label.kind === "number" ? String(value) : valueText(label, task));
      if (label.low) row.push(String(label.low[task] ?? ""), String(label.high?.[task] ?? ""));
    }
    return row;
  });
  return [head, ...rows].map((row) => row.map(csvCell).join(",")).join("\n") + "\n";
}

function save(name, text, type) {
  const address = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}
