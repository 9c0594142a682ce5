// Pictures on canvases: grids of digits, and of what steps change, in the colours of the scheme.

const SIDE = 28;

const channels = (name) => {
  const held = getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hex = held.length === 4 ? [...held.slice(1)].map((c) => c + c) : held.slice(1).match(/../g);
  return hex.map((pair) => parseInt(pair, 16));
};

const shown = new Map(); // what each canvas shows, to be painted anew when the scheme changes

/** Paint a batch of pictures side by side; `signed` ones have their own colours for more ink and for less. */
export function paint(canvas, ...said) {
  shown.set(canvas, said);
  canvas.closest("figure").classList.remove("outdated");
  put(canvas, ...said);
}

/** Dim what a part shows of a former request, until it is painted anew. */
export function outdate(part) {
  for (const canvas of part.querySelectorAll("figure canvas")) {
    if (!shown.has(canvas)) continue;
    canvas.closest("figure").classList.add("outdated");
    const label = canvas.getAttribute("aria-label");
    if (!label.endsWith(", outdated")) canvas.setAttribute("aria-label", `${label}, outdated`);
  }
}

function put(canvas, pictures, columns, { signed = false } = {}) {
  const number = pictures.length / SIDE ** 2;
  const rows = Math.ceil(number / columns);
  const [paper, ink, more, less] = ["--paper", "--ink", "--more", "--less"].map(channels);
  const largest = signed ? pictures.reduce((most, value) => Math.max(most, Math.abs(value)), 1e-6) : 1;
  const width = columns * (SIDE + 1) - 1;
  const height = rows * (SIDE + 1) - 1;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const image = new ImageData(width, height);
  const line = channels("--line");
  for (let i = 0; i < width * height; i++) image.data.set([...line, 255], 4 * i);
  for (let n = 0; n < number; n++) {
    const [left, top] = [(n % columns) * (SIDE + 1), Math.floor(n / columns) * (SIDE + 1)];
    for (let k = 0; k < SIDE ** 2; k++) {
      const value = pictures[n * SIDE ** 2 + k];
      const share = signed ? Math.abs(value) / largest : Math.min(1, Math.max(0, (value + 1) / 2));
      const toward = !signed ? ink : value > 0 ? more : less;
      const place = 4 * ((top + Math.floor(k / SIDE)) * width + left + (k % SIDE));
      for (let c = 0; c < 3; c++) image.data[place + c] = paper[c] + share * (toward[c] - paper[c]);
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

/** Paint all anew, after the scheme has changed. */
export function repaint() {
  for (const [canvas, said] of shown) put(canvas, ...said);
}

/** The drawing pad: what is known of a picture, drawn by pointer or keys. */
export class Pad {
  constructor(canvas, changed, moved) {
    Object.assign(this, { canvas, changed, moved, values: new Float32Array(SIDE ** 2).fill(-1), half: "upper" });
    [this.row, this.column] = [7, 14];
    const at = (event) => {
      const box = canvas.getBoundingClientRect();
      return [((event.clientY - box.top) / box.height) * SIDE - 0.5, ((event.clientX - box.left) / box.width) * SIDE - 0.5];
    };
    let last = null;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.stroke((last = at(event)), last);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (last) this.stroke(last, (last = at(event)));
    });
    for (const end of ["pointerup", "pointercancel"]) {
      canvas.addEventListener(end, () => {
        if (last) this.changed();
        last = null;
      });
    }
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.show());
    canvas.addEventListener("blur", () => this.show());
    this.show();
  }

  /** Which pixels are known. */
  get known() {
    const inside = {
      upper: (row) => row < SIDE / 2,
      lower: (row) => row >= SIDE / 2,
      left: (row, column) => column < SIDE / 2,
      right: (row, column) => column >= SIDE / 2,
    }[this.half];
    return Array.from({ length: SIDE ** 2 }, (_, k) => inside(Math.floor(k / SIDE), k % SIDE));
  }

  stroke(from, to, ink = 1) {
    const steps = Math.ceil(Math.hypot(to[0] - from[0], to[1] - from[1]) * 2) + 1;
    for (let s = 0; s < steps; s++) {
      const [y, x] = [0, 1].map((i) => from[i] + ((to[i] - from[i]) * s) / Math.max(1, steps - 1));
      for (let row = Math.max(0, Math.floor(y - 2)); row <= Math.min(SIDE - 1, y + 3); row++) {
        for (let column = Math.max(0, Math.floor(x - 2)); column <= Math.min(SIDE - 1, x + 3); column++) {
          const share = Math.min(1, Math.max(0, 1.5 - Math.hypot(row - y, column - x)));
          const place = row * SIDE + column;
          const wanted = 2 * share - 1;
          this.values[place] = ink > 0 ? Math.max(this.values[place], wanted) : Math.min(this.values[place], -wanted);
        }
      }
    }
    this.show();
  }

  key(event) {
    const moves = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    const from = [this.row, this.column];
    if (moves[event.key]) {
      this.row = Math.min(SIDE - 1, Math.max(0, this.row + moves[event.key][0]));
      this.column = Math.min(SIDE - 1, Math.max(0, this.column + moves[event.key][1]));
      if (event.shiftKey) this.stroke(from, [this.row, this.column]);
    } else if (event.key === " " || event.key === "Enter") this.stroke(from, from);
    else if (event.key === "Backspace" || event.key === "Delete") this.stroke(from, from, -1);
    else return;
    event.preventDefault();
    this.show();
    const known = this.known[this.row * SIDE + this.column] ? "" : ", in the half that is not known";
    const inked = this.values[this.row * SIDE + this.column] > 0 ? "ink" : "empty";
    const where = `row ${this.row + 1}, column ${this.column + 1}: ${inked}${known}`;
    if (!moves[event.key] || event.shiftKey) this.changed(where);
    else this.moved(where);
  }

  show() {
    const context = this.canvas.getContext("2d");
    const size = this.canvas.width / SIDE;
    const known = this.known;
    const colour = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
    const [paper, ink, line, accent] = ["--paper", "--ink", "--line", "--accent"].map(channels);
    this.values.forEach((value, k) => {
      const share = Math.min(1, Math.max(0, (value + 1) / 2));
      const mixed = paper.map((c, i) => c + share * (ink[i] - c));
      context.fillStyle = colour(known[k] ? mixed : line);
      context.fillRect((k % SIDE) * size, Math.floor(k / SIDE) * size, size, size);
    });
    context.fillStyle = colour(paper);
    known.forEach((inside, k) => {
      const [row, column] = [Math.floor(k / SIDE), k % SIDE];
      if (!inside && (row + column) % 4 === 0) context.fillRect(column * size + size * 0.4, row * size + size * 0.4, 2, 2);
    });
    if (document.activeElement === this.canvas) {
      context.strokeStyle = colour(accent);
      context.lineWidth = 3;
      context.strokeRect(this.column * size - 1, this.row * size - 1, size + 2, size + 2);
    }
  }
}
