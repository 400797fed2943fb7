// Tables: of all tasks, their ends, and the three that want a look. They follow the filter; long ones are shown page by page.

const PAGE = 25;
const ENDS = 10;

function pagedTable(caption, columns, rows, { sort = "", descending = true, onSort = null, choose }) {
  let order = rows;
  let by = sort;
  let down = descending;
  let page = 0;
  const body = element("tbody");
  const head = element("tr");
  const pager = element("div", { className: "pager" });

  function arrange() {
    const column = columns.find((each) => each.name === by);
    if (!column) {
      order = rows;
      return;
    }
    const keyed = rows.map((row) => [column.key(row), row]);
    const missing = (key) => key === null || key === undefined || key === "";
    keyed.sort(([a], [b]) => {
      if (missing(a) || missing(b)) return missing(a) - missing(b);
      const first = typeof a === "number" ? a - b : String(a).localeCompare(String(b));
      return down ? -first : first;
    });
    order = keyed.map(([, row]) => row);
  }

  function fill() {
    const pages = Math.max(1, Math.ceil(order.length / PAGE));
    page = Math.min(page, pages - 1);
    body.replaceChildren(
      ...order.slice(page * PAGE, (page + 1) * PAGE).map((row) => {
        const cells = columns.map((column) => element("td", { className: column.className ?? "" }, column.cell(row)));
        const made = element("tr", {}, ...cells);
        if (row.task !== undefined && row.task === state.task) made.className = "pinned";
        return made;
      })
    );
    if (pages === 1) {
      pager.replaceChildren();
      return;
    }
    const go = (text, to, label) => {
      const button = element("button", { type: "button", disabled: to < 0 || to >= pages, "aria-label": label }, text);
      button.addEventListener("click", () => {
        page = to;
        fill();
      });
      return button;
    };
    const first = page * PAGE + 1;
    const said = `${first.toLocaleString()} to ${Math.min(first + PAGE - 1, order.length).toLocaleString()} of ${order.length.toLocaleString()}`;
    pager.replaceChildren(go("«", 0, "First page"), go("‹", page - 1, "Page before"), said, go("›", page + 1, "Next page"), go("»", pages - 1, "Last page"));
  }

  function heads() {
    head.replaceChildren(
      ...columns.map((column) => {
        const arrow = column.name === by ? (down ? " ↓" : " ↑") : "";
        const cell = element("th", { className: column.className === "number" ? "number" : "", scope: "col" });
        cell.setAttribute("aria-sort", column.name === by ? (down ? "descending" : "ascending") : "none");
        if (!column.key) {
          cell.append(column.name);
          return cell;
        }
        const button = element("button", { type: "button" }, column.name + arrow);
        button.addEventListener("click", () => {
          down = by === column.name ? !down : true;
          by = column.name;
          page = 0;
          arrange();
          heads();
          fill();
          onSort?.(by, down);
        });
        cell.append(button);
        return cell;
      })
    );
  }

  arrange();
  heads();
  fill();
  const table = element("table", {}, element("caption", {}, caption), element("thead", {}, head), body);
  body.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-task]");
    if (button) choose(Number(button.dataset.task));
  });
  return element("div", {}, element("div", { className: "scroll" }, table), pager);
}

function taskButton(task) {
  const button = element("button", { type: "button", title: data.id[task] }, data.id[task]);
  button.dataset.task = task;
  return button;
}

const taskColumn = (name = "task", of = (row) => row.task) => ({ name, key: (row) => data.id[of(row)], cell: (row) => taskButton(of(row)) });
const textColumn = (name = "text", of = (row) => row.task) => ({ name, className: "excerpt", cell: (row) => element("span", {}, excerpt(of(row), 140)) });
const countColumn = (name, of) => ({ name, className: "number", key: of, cell: (row) => of(row).toLocaleString() });
const numberColumn = (name, of) => ({ name, className: "number", key: of, cell: (row) => shortNumber(of(row)) });

function labelColumn(label) {
  if (label.kind === "number") {
    return {
      name: label.name,
      className: "number",
      key: (row) => label.values[row.task],
      cell: (row) => {
        const value = shortNumber(label.values[row.task]);
        const range = value ? interval(label, row.task) : "";
        return range ? element("span", {}, value, element("span", { className: "range" }, range)) : value;
      },
    };
  }
  return { name: label.name, key: (row) => valueText(label, row.task), cell: (row) => valueText(label, row.task) };
}

// ---- the panels

function tasksPanel({ choose, update }) {
  const coloured = labelNamed.get(state.colour);
  const rest = data.labels.filter((label) => label !== coloured && label !== origin && label.kind !== "text");
  const columns = [taskColumn(), ...(coloured && coloured !== origin ? [labelColumn(coloured)] : []), labelColumn(origin), textColumn(), ...rest.map(labelColumn)];
  const rows = shown.map((task) => ({ task }));
  const onSort = (by, down) => {
    [state.sort, state.descending] = [by, down];
    update();
  };
  return pagedTable(`${shown.length.toLocaleString()} tasks`, columns, rows, { sort: state.sort, descending: state.descending, onSort, choose });
}

function endsPanel({ choose }) {
  const label = labelNamed.get(state.colour);
  if (label?.kind !== "number") return element("p", {}, "Colour by a label of numbers, and its top and bottom tasks stand here.");
  const known = shown.filter((task) => label.values[task] !== null).sort((a, b) => label.values[b] - label.values[a]);
  const size = Math.min(ENDS, Math.floor(known.length / 2));
  const columns = [taskColumn(), labelColumn(label), labelColumn(origin), textColumn()];
  const table = (caption, tasks) => pagedTable(caption, columns, tasks.map((task) => ({ task })), { choose });
  return element(
    "div", { className: "columns" },
    table(`Top ${size} by ${label.name}`, known.slice(0, size)),
    table(`Bottom ${size} by ${label.name}`, known.slice(known.length - size).reverse())
  );
}

function pairsPanel({ choose }) {
  if (!data.pairs.length) return element("p", {}, "No run here asked three pairs or more in both orders.");
  const parts = data.pairs.map((pairs) => {
    const rows = pairs.one.map((one, place) => ({ one, two: pairs.two[place], first: pairs.first[place], second: pairs.second[place] }));
    const kept = rows.filter((row) => isShown[row.one] || isShown[row.two]);
    const cut = pairs.flips > rows.length ? `, the clearest ${rows.length.toLocaleString()} of them here` : "";
    const caption = `${pairs.run}: in ${pairs.flips.toLocaleString()} of ${pairs.asked.toLocaleString()} pairs the order decides${cut}`;
    const columns = [
      taskColumn("task", (row) => row.one),
      textColumn("text", (row) => row.one),
      taskColumn("other task", (row) => row.two),
      textColumn("other text", (row) => row.two),
      numberColumn("for the first when first", (row) => row.first),
      numberColumn("for the first when second", (row) => row.second),
      { name: "chosen", key: (row) => (row.first > 0 ? "shown first" : "shown second"), cell: (row) => (row.first > 0 ? "shown first" : "shown second") },
    ];
    const note = element("p", { className: "faint" }, `In ${pairs.unit}; above zero the first task is chosen. Pairs with a task that is shown in the map.`);
    return element("div", {}, pagedTable(caption, columns, kept, { choose }), note);
  });
  return element("div", {}, ...parts);
}

function crossPanel({ choose, look }) {
  if (!data.crosses.length) return element("p", {}, "There is no label of refusal beside one of preference. refusal_correlation makes both.");
  const views = ["prefers yet refuses", "prefers and does", "spurns and refuses", "spurns and does"];
  const parts = data.crosses.map((cross) => {
    const cell = (place) => {
      const inside = cross.members[place].filter((task) => isShown[task]).length;
      const button = element("button", { type: "button", title: `Show ${views[place]}` }, String(inside));
      button.addEventListener("click", () => look(`${views[place]} (${cross.refusal})`));
      return element("td", { className: "number" }, button);
    };
    const row = (name, first) => element("tr", {}, element("th", { scope: "row" }, name), cell(first), cell(first + 1));
    const head = element("tr", {}, element("th"), element("th", { scope: "col" }, "refused"), element("th", { scope: "col" }, "not refused"));
    const caption = element("caption", {}, `${cross.preference} by ${cross.refusal}, of the tasks shown`);
    const table = element("table", { className: "cross" }, caption, element("thead", {}, head), element("tbody", {}, row("preferred", 0), row("not preferred", 2)));
    const columns = [taskColumn(), labelColumn(labelNamed.get(cross.preference)), labelColumn(labelNamed.get(cross.refusal)), labelColumn(origin), textColumn()];
    const kept = cross.members[0].filter((task) => isShown[task]).map((task) => ({ task }));
    return element("div", {}, table, kept.length ? pagedTable("Preferred, and yet refused", columns, kept, { choose }) : "");
  });
  return element("div", {}, ...parts, element("p", { className: "faint" }, "A number opens its tasks. What the counts are worth is said below, under what was found."));
}

function saidPanel({ choose }) {
  const { said } = data;
  if (!said) return element("p", {}, "There is no self-report beside a choice of the same tasks.");
  const rows = said.tasks
    .map((task, place) => ({ task, place }))
    .filter((row) => isShown[row.task])
    .sort((a, b) => Math.abs(said.difference[b.place]) - Math.abs(said.difference[a.place]));
  const columns = [
    taskColumn(),
    numberColumn(`chosen: ${said.choice}`, (row) => said.chosen[row.place]),
    numberColumn(`said: ${said.report}`, (row) => said.said[row.place]),
    {
      name: "said − chosen",
      className: "number",
      key: (row) => said.difference[row.place],
      cell: (row) => {
        const low = said.low[row.place];
        return shortNumber(said.difference[row.place]) + (low === null ? "" : ` [${shortNumber(low)}, ${shortNumber(said.high[row.place])}]`);
      },
    },
    numberColumn("corrected p", (row) => said.p_corrected[row.place]),
    numberColumn("difference of ranks", (row) => said.rank_difference[row.place]),
    labelColumn(origin),
    textColumn(),
  ];
  const how = said.tested ? "p by both standard errors, corrected by Benjamini and Hochberg" : "without standard errors of both, nothing is tested";
  return pagedTable(`In standard deviations over tasks; ${how}`, columns, rows, { choose });
}

function nearPanel({ choose }) {
  if (!data.near.length) return element("p", {}, "No label has enough tasks on the map to say whether neighbours are alike.");
  const columns = data.nearColumns.map((name, place) =>
    typeof data.near[0][place] === "string"
      ? { name, key: (row) => row[place], cell: (row) => row[place] }
      : (name === "n" ? countColumn : numberColumn)(name.replaceAll("_", " "), (row) => row[place])
  );
  const note =
    "r2: held-out R² of a task's label from the mean of its nearest tasks, itself left out, with a 95 % interval by jackknife over tasks. chance: its mean over permuted " +
    "labels (below zero, as a mean of few is rough), chance 95: their 95th percentile. origin: its mean where labels are permuted within origins only. p origin: whether neighbours " +
    "say more than origins do. smallest gain: the gain over chance that would be found about four times in five.";
  return element("div", {}, pagedTable("Do tasks that are near one another have like labels?", columns, data.near, { choose }), element("p", { className: "faint" }, note));
}

const PANELS = {
  tasks: ["Tasks", tasksPanel],
  ends: ["Top and bottom", endsPanel],
  pairs: ["Order flips", pairsPanel],
  crosses: ["Preferred, refused", crossPanel],
  said: ["Said, chosen", saidPanel],
  near: ["Neighbours", nearPanel],
};
