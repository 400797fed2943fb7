// Everything put together: controls change the state, the state is drawn and kept in the address.

const by = (id) => document.getElementById(id);
const selectable = data.labels.filter((label) => label.kind !== "text");
let filterBy = "origin";

function options(select, entries) {
  select.replaceChildren(...entries.map(([value, text]) => element("option", { value }, text)));
}

function setUp() {
  options(by("colour"), selectable.map((label) => [label.name, label.name]));
  const axes = numbers.map((label) => [label.name, label.name]);
  options(by("across"), hasMap ? [["", "map"], ...axes] : axes);
  options(by("up"), hasMap ? [["", "map"], ...axes] : axes);
  options(by("view"), [["", "all tasks"], ...data.views.map((view) => [view.name, `${view.name} (${view.members.length.toLocaleString()})`])]);
  options(by("filter-by"), selectable.map((label) => [label.name, label.name]));
  by("filter-by").value = filterBy;
  by("tabs").replaceChildren(
    ...Object.entries(PANELS).map(([name, [title]]) => {
      const tab = element("button", { type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "panel" }, title);
      tab.addEventListener("click", () => {
        state.tab = name;
        refresh({ filters: false });
      });
      return tab;
    })
  );
}

function choose(task) {
  state.task = task;
  refresh({ filters: false });
}

function look(view) {
  clearFilters();
  state.view = data.views.some((each) => each.name === view) ? view : "";
  refresh();
}

function refresh({ filters = true } = {}) {
  if (filters) {
    applyFilters();
    hovered = null;
    tip.hidden = true;
  }
  place();
  draw();
  writeControls();
  writeLegend();
  writeDetail();
  if (!Object.hasOwn(PANELS, state.tab)) state.tab = "tasks";
  const [, panel] = PANELS[state.tab];
  by("panel").replaceChildren(panel({ choose, look, update: writeHash }));
  writeHash();
}

function writeControls() {
  for (const name of ["colour", "across", "up", "view"]) by(name).value = state[name];
  if (by("search").value !== state.query) by("search").value = state.query;
  const drawn = shown.filter((task) => !Number.isNaN(screenX[task])).length;
  by("count").textContent = `${shown.length.toLocaleString()} of ${n.toLocaleString()} tasks`;
  const off = shown.length - drawn;
  by("map-note").textContent =
    (state.across || state.up ? "Drawn by labels." : `By ${data.map}. Groups are worth a look; distances between them, and their sizes, mean nothing.`) +
    (off ? ` ${off.toLocaleString()} of the tasks shown have no place here, and are in the tables.` : "");
  by("view-note").textContent = data.views.find((view) => view.name === state.view)?.note ?? "";
  for (const tab of by("tabs").children) tab.setAttribute("aria-selected", String(tab.id === `tab-${state.tab}`));
  const chip = (text, remove) => {
    const button = element("button", { type: "button", className: "chip", title: "Take this filter away" }, `${text} ×`);
    button.addEventListener("click", () => {
      remove();
      refresh();
    });
    return button;
  };
  const chips = [];
  if (state.query) chips.push(chip(`“${state.query}”`, () => { state.query = ""; }));
  if (state.view) chips.push(chip(state.view, () => { state.view = ""; }));
  for (const [name, range] of state.ranges) {
    chips.push(chip(`${name}: ${range.map((end) => (end === null ? "…" : shortNumber(end))).join(" to ")}`, () => state.ranges.delete(name)));
  }
  for (const [name, chosen] of state.chosen) chips.push(chip(`${name}: ${[...chosen].join(", ")}`, () => state.chosen.delete(name)));
  by("chips").replaceChildren(...chips);
  by("clear").hidden = !chips.length;
  writeFilterBox();
}

function writeFilterBox() {
  const label = labelNamed.get(filterBy);
  const box = by("filter-box");
  if (box.contains(document.activeElement)) return; // while someone types there
  if (label?.kind === "number") {
    const [low, high] = state.ranges.get(label.name) ?? [null, null];
    const input = (text, value, end) => {
      const field = element("input", { type: "number", step: "any", value: value ?? "", placeholder: shortNumber(ends(label.values)[end]) });
      field.addEventListener("input", () => {
        const fields = box.querySelectorAll("input");
        setRange(label, endOf(fields[0].value), endOf(fields[1].value));
        refresh();
      });
      return element("label", {}, `${text} `, field);
    };
    box.replaceChildren(`${label.name}:`, input("from", low, 0), input("to", high, 1));
  } else if (label) {
    box.replaceChildren(
      ...label.categories.map((name) => {
        const field = element("input", { type: "checkbox", checked: state.chosen.get(label.name)?.has(name) ?? false });
        field.addEventListener("change", () => {
          toggleCategory(label, name);
          refresh();
        });
        field.style.width = "auto";
        return element("label", {}, field, ` ${name}`);
      })
    );
  }
}

function writeLegend() {
  const label = labelNamed.get(state.colour);
  if (!label) return;
  const title = element("h2", {}, label.name);
  const from = element("p", { className: "faint" }, [label.source, label.method].filter(Boolean).join(", "));
  if (label.kind === "number") {
    const strip = element("canvas", { id: "ramp", width: STEPS * 4, height: 1 });
    const pen = strip.getContext("2d");
    for (let step = 0; step < STEPS; step++) {
      pen.fillStyle = ramp(stopsOf(label), step / (STEPS - 1));
      pen.fillRect(step * 4, 0, 4, 1);
    }
    const [low, high] = label.scale;
    const marks = [`≤ ${shortNumber(low)}`, shortNumber((low + high) / 2), `≥ ${shortNumber(high)}`].map((text) => element("span", {}, text));
    const without = shown.filter((task) => label.values[task] === null).length;
    const note = without ? `${without.toLocaleString()} of the tasks shown have none (rings).` : "";
    by("legend").replaceChildren(title, from, strip, element("div", { className: "ends" }, ...marks), element("p", { className: "faint" }, note));
    return;
  }
  const counts = new Array(label.categories.length).fill(0);
  let several = 0;
  for (const task of shown) {
    const value = label.values[task];
    if (value === null) continue;
    if (value.length > 1) several++;
    for (const each of value) counts[each]++;
  }
  const rows = label.categories.map((name, place) => {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = categoryColour(place);
    const meaning = label.meanings[place] ? `: ${label.meanings[place]}` : "";
    const pressed = state.chosen.get(label.name)?.has(name) ?? false;
    const button = element("button", { type: "button", title: "Only these" }, swatch, element("span", {}, `${name}${meaning} (${counts[place].toLocaleString()})`));
    button.setAttribute("aria-pressed", String(pressed));
    button.addEventListener("click", () => {
      toggleCategory(label, name);
      refresh();
    });
    return element("li", {}, button);
  });
  if (several) {
    const swatch = element("span", { className: "swatch" });
    swatch.style.background = style("--ink");
    rows.push(element("li", { className: "several" }, swatch, element("span", {}, `several of these (${several.toLocaleString()})`)));
  }
  const grey = label.categories.length > data.colours.categories.length ? element("p", { className: "faint" }, "Grey: the rarer ones; click one to see it alone.") : "";
  by("legend").replaceChildren(title, from, element("ul", {}, ...rows), grey);
}

function writeDetail() {
  const { task } = state;
  if (task === null) {
    by("detail").replaceChildren(element("p", { className: "faint" }, "Point at a task to see what it is; click it, or its id in a table, to keep it here."));
    return;
  }
  const list = element("dl");
  for (const label of data.labels) {
    const text = valueText(label, task);
    if (!text) continue;
    const meanings = (label.kind === "codes" || label.kind === "category" ? label.values[task] : [])
      .map((place) => label.meanings[place])
      .filter(Boolean);
    list.append(element("dt", {}, label.name), element("dd", {}, meanings.length ? `${text} (${meanings.join("; ")})` : text));
  }
  const views = data.views.filter((view) => view.members.includes(task)).map((view) => view.name);
  if (views.length) list.append(element("dt", {}, "views"), element("dd", {}, views.join("; ")));
  const close = element("button", { type: "button" }, "Close");
  close.addEventListener("click", () => choose(null));
  by("detail").replaceChildren(element("h2", {}, data.id[task]), element("pre", {}, data.text[task] ?? "(text not found)"), list, close);
}

function listen() {
  by("bar").addEventListener("submit", (event) => event.preventDefault());
  for (const name of ["colour", "across", "up", "view"]) {
    by(name).addEventListener("change", () => {
      state[name] = by(name).value;
      refresh();
    });
  }
  let waiting = 0;
  by("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => {
      state.query = by("search").value;
      refresh();
    }, 80);
  });
  by("filter-by").addEventListener("change", () => {
    filterBy = by("filter-by").value;
    writeFilterBox();
  });
  by("clear").addEventListener("click", () => {
    clearFilters();
    refresh();
  });
  by("save-ids").addEventListener("click", () => save("task_ids.txt", shown.map((task) => data.id[task]).join("\n") + "\n", "text/plain"));
  by("save-csv").addEventListener("click", () => save("tasks.csv", shownCsv(), "text/csv"));
  by("copy-link").addEventListener("click", async () => {
    const button = by("copy-link");
    try {
      await navigator.clipboard.writeText(location.href);
      button.textContent = "Copied";
    } catch {
      button.textContent = "The address bar has it"; // a page from a file may not write to the clipboard
    }
    setTimeout(() => { button.textContent = "Copy link"; }, 1500);
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "/" && !/^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement.tagName)) {
      event.preventDefault();
      by("search").focus();
    }
  });
  window.addEventListener("hashchange", () => {
    readHash();
    refresh();
  });
  window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => refresh({ filters: false }));
  new ResizeObserver(() => {
    place();
    draw();
  }).observe(stage);
  listenOnMap(choose);
}

setUp();
readHash();
listen();
refresh();
document.documentElement.dataset.ready = "yes";
