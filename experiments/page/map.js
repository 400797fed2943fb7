// The map: a canvas with a point a task, and a grid of what is where, so that the task under the pointer is found at once.

const canvas = document.getElementById("canvas");
const stage = document.getElementById("stage");
const tip = document.getElementById("tip");
const CELL = 24; // pixels
const REACH = 14;
const MARGIN = 34;
const screenX = new Float32Array(n);
const screenY = new Float32Array(n);
let grid = new Map();
let zoom = { scale: 1, x: 0, y: 0 };
let hovered = null;

function coordinates() {
  const axis = (name, places) => (name ? labelNamed.get(name).values : places);
  return [axis(state.across, data.x), axis(state.up, data.y)];
}

function ends(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null) continue;
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high > low ? high : low + 1] : [0, 1];
}

function place() {
  const [xs, ys] = coordinates();
  const { clientWidth: width, clientHeight: height } = stage;
  const [[left, right], [bottom, top]] = [ends(xs), ends(ys)];
  for (let task = 0; task < n; task++) {
    if (xs[task] === null || ys[task] === null) {
      screenX[task] = NaN;
      continue;
    }
    const x = MARGIN + ((xs[task] - left) / (right - left)) * (width - 2 * MARGIN);
    const y = height - MARGIN - ((ys[task] - bottom) / (top - bottom)) * (height - 2 * MARGIN);
    screenX[task] = x * zoom.scale + zoom.x;
    screenY[task] = y * zoom.scale + zoom.y;
  }
  grid = new Map();
  for (const task of shown) {
    if (Number.isNaN(screenX[task])) continue;
    const key = `${Math.floor(screenX[task] / CELL)},${Math.floor(screenY[task] / CELL)}`;
    const cell = grid.get(key);
    if (cell) cell.push(task);
    else grid.set(key, [task]);
  }
}

function nearestTask(x, y) {
  let best = null;
  let least = REACH * REACH;
  const [column, row] = [Math.floor(x / CELL), Math.floor(y / CELL)];
  for (let i = column - 1; i <= column + 1; i++) {
    for (let j = row - 1; j <= row + 1; j++) {
      for (const task of grid.get(`${i},${j}`) ?? []) {
        const distance = (screenX[task] - x) ** 2 + (screenY[task] - y) ** 2;
        if (distance < least) [best, least] = [task, distance];
      }
    }
  }
  return best;
}

function radius() {
  return (n <= 200 ? 5.5 : n <= 1000 ? 4.2 : n <= 4000 ? 3.2 : 2.6) * Math.min(2, Math.sqrt(zoom.scale));
}

// In an order that has nothing to do with labels: drawn by value, the highest would hide the others where many lie together.
const shuffled = Array.from({ length: n }, (_, task) => task).sort((a, b) => mixed(a) - mixed(b));

function mixed(task) {
  let bits = Math.imul(task + 1, 0x9e3779b1);
  bits = Math.imul(bits ^ (bits >>> 15), 0x85ebca6b);
  return bits ^ (bits >>> 13);
}

// All points are drawn once; what is pointed at is a ring on a copy of that.
const points = document.createElement("canvas");

function draw() {
  drawPoints();
  drawRings();
}

function cleared(board) {
  const { clientWidth: width, clientHeight: height } = stage;
  const density = window.devicePixelRatio || 1;
  const [wide, high] = [Math.round(width * density), Math.round(height * density)];
  if (board.width !== wide || board.height !== high) [board.width, board.height] = [wide, high];
  const pen = board.getContext("2d");
  pen.setTransform(density, 0, 0, density, 0, 0);
  pen.clearRect(0, 0, width, height);
  return [pen, width, height];
}

function drawPoints() {
  const [pen, width, height] = cleared(points);
  const label = labelNamed.get(state.colour);
  const size = radius();
  const edgeColour = style("--card");
  const missingColour = style("--other");
  const colours = new Map();
  const edge = n <= 4000;
  pen.lineWidth = 0.8;
  for (const drawShown of [0, 1]) { // what is filtered out lies below
    pen.globalAlpha = drawShown ? 0.92 : 0.45;
    for (const task of shuffled) {
      if (isShown[task] !== drawShown || Number.isNaN(screenX[task])) continue;
      const key = drawShown && label ? colourKey(label, task) : -2;
      if (!colours.has(key)) colours.set(key, key === -2 ? style("--mute") : colourOfKey(label, key));
      pen.beginPath();
      pen.arc(screenX[task], screenY[task], drawShown ? size : size * 0.55, 0, 2 * Math.PI);
      if (key === -1) { // without a value: a ring, as greys are colours too
        pen.strokeStyle = missingColour;
        pen.stroke();
        continue;
      }
      pen.fillStyle = colours.get(key);
      pen.fill();
      if (edge && drawShown) {
        pen.strokeStyle = edgeColour;
        pen.stroke();
      }
    }
  }
  pen.globalAlpha = 1;
  drawAxes(pen, width, height);
}

function drawRings() {
  const [pen, width, height] = cleared(canvas);
  if (points.width && points.height) pen.drawImage(points, 0, 0, width, height);
  const size = radius();
  for (const [task, colour] of [[state.task, style("--accent")], [hovered, style("--ink")]]) {
    if (task === null || Number.isNaN(screenX[task])) continue;
    pen.beginPath();
    pen.arc(screenX[task], screenY[task], size + 3, 0, 2 * Math.PI);
    pen.strokeStyle = colour;
    pen.lineWidth = 2.5;
    pen.stroke();
  }
}

function drawAxes(pen, width, height) {
  if (!state.across && !state.up) return;
  const [xs, ys] = coordinates();
  pen.fillStyle = style("--faint");
  pen.font = "12px system-ui, sans-serif";
  const [left, right] = ends(xs);
  const [bottom, top] = ends(ys);
  if (state.across && zoom.scale === 1) {
    pen.textAlign = "left";
    pen.fillText(shortNumber(left), MARGIN, height - 6);
    pen.textAlign = "right";
    pen.fillText(shortNumber(right), width - MARGIN, height - 6);
  }
  pen.textAlign = "center";
  if (state.across) pen.fillText(`${state.across} →`, width / 2, height - 6);
  pen.save();
  pen.rotate(-Math.PI / 2);
  if (state.up) {
    pen.fillText(`${state.up} →`, -height / 2, 12);
    if (zoom.scale === 1) {
      pen.fillText(shortNumber(bottom), -(height - MARGIN), 12);
      pen.fillText(shortNumber(top), -MARGIN - 6, 12);
    }
  }
  pen.restore();
}

// ---- hover, click, keys, zoom

function showTip(task) {
  hovered = task;
  if (task === null) {
    tip.hidden = true;
    drawRings();
    return;
  }
  const lines = [element("b", {}, `${data.id[task]} · ${valueText(origin, task)}`), element("div", {}, excerpt(task, 220))];
  const named = [labelNamed.get(state.colour), ...numbers].filter((label, place, all) => label && all.indexOf(label) === place);
  for (const label of named.slice(0, 7)) {
    const text = label === origin ? "" : valueText(label, task);
    if (text) lines.push(element("div", { className: "faint" }, `${label.name}: ${text}`));
  }
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const x = Number.isNaN(screenX[task]) ? 0 : screenX[task];
  const y = Number.isNaN(screenX[task]) ? 0 : screenY[task];
  const rightward = x + 14 + tip.offsetWidth <= stage.clientWidth;
  const downward = y + 14 + tip.offsetHeight <= stage.clientHeight;
  tip.style.left = `${Math.max(0, rightward ? x + 14 : x - 14 - tip.offsetWidth)}px`;
  tip.style.top = `${Math.max(0, downward ? y + 14 : y - 14 - tip.offsetHeight)}px`;
  drawRings();
}

function zoomBy(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const scale = Math.min(Math.max(zoom.scale * factor, 1), 60);
  const ratio = scale / zoom.scale;
  zoom = scale === 1 ? { scale: 1, x: 0, y: 0 } : { scale, x: x - (x - zoom.x) * ratio, y: y - (y - zoom.y) * ratio };
  canvas.style.touchAction = scale === 1 ? "pan-y" : "none";
  place();
  draw();
}

function listenOnMap(choose) {
  let from = null;
  let moved = false;
  const where = (event) => {
    const box = canvas.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  canvas.addEventListener("pointerdown", (event) => {
    from = where(event);
    moved = false;
  });
  canvas.addEventListener("pointermove", (event) => {
    const [x, y] = where(event);
    if (from && event.buttons && zoom.scale > 1) {
      if (Math.hypot(x - from[0], y - from[1]) > 4) moved = true;
      if (moved) {
        zoom = { ...zoom, x: zoom.x + event.movementX, y: zoom.y + event.movementY };
        place();
        draw();
        return;
      }
    }
    const task = nearestTask(x, y);
    if (task !== hovered) showTip(task);
  });
  canvas.addEventListener("pointerleave", () => showTip(null));
  canvas.addEventListener("click", (event) => {
    if (!moved) choose(nearestTask(...where(event)));
  });
  canvas.addEventListener("wheel", (event) => {
    if (document.activeElement !== canvas && !event.ctrlKey) return; // a page that is scrolled past stays as it is
    event.preventDefault();
    zoomBy(event.deltaY < 0 ? 1.2 : 1 / 1.2, ...where(event));
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    const towards = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (towards) {
      event.preventDefault();
      showTip(step(hovered ?? state.task, ...towards));
    } else if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      choose(hovered);
    } else if (event.key === "Escape") {
      showTip(null);
      choose(null);
    } else if (event.key === "+" || event.key === "-") zoomBy(event.key === "+" ? 1.4 : 1 / 1.4);
    else if (event.key === "0") zoomBy(0);
  });
  document.getElementById("closer").addEventListener("click", () => zoomBy(1.6));
  document.getElementById("further").addEventListener("click", () => zoomBy(1 / 1.6));
  document.getElementById("whole").addEventListener("click", () => zoomBy(0));
}

// The next task in a direction: near, and more ahead than aside.
function step(task, right, down) {
  const drawn = shown.filter((each) => !Number.isNaN(screenX[each]));
  if (task === null || Number.isNaN(screenX[task])) return drawn[0] ?? null;
  let best = task;
  let least = Infinity;
  for (const each of drawn) {
    const [x, y] = [screenX[each] - screenX[task], screenY[each] - screenY[task]];
    const ahead = x * right + y * down;
    const aside = Math.abs(x * down) + Math.abs(y * right);
    const cost = ahead + 2 * aside;
    if (each !== task && ahead > 0 && aside <= 2 * ahead && cost < least) [best, least] = [each, cost];
  }
  return best;
}
