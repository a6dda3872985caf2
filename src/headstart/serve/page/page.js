const AT_ONCE = 3, MAX_TRIES = 12, PREVIEW_PX = 960, SHOWN_CLASSES = 5, TOOLS_FROM = 4, NUM_NEAR = 5;
const SHRUNK_SIDES_PX = [4096, 3072, 2048, 1024];
const PICTURE_NAME = /\.(jpe?g|jfif|png|gif|webp|bmp|tiff?|avif|heic|heif|mpo)$/i;
const TITLES = {
  empty: "The file is empty",
  "not-an-image": "This is not a picture",
  "unsupported-format": "This kind of picture cannot be read",
  "unsupported-pixels": "This kind of picture cannot be read",
  truncated: "The file is cut short",
  damaged: "The file is damaged",
  "too-many-pixels": "The picture is too large",
  "too-large": "The picture is too large",
  "too-much-memory": "The picture is too large",
  "too-slow": "The picture takes too long to read",
  overloaded: "The server is busy",
  unreachable: "The server does not answer",
  "no-key": "The server asks for a key",
};

const byId = (id) => document.getElementById(id);
function el(tag, props, ...children) {
  const node = Object.assign(document.createElement(tag), props);
  node.append(...children.filter((child) => child != null));
  return node;
}
const button = (text, onclick, props) => el("button", { type: "button", onclick, ...props }, text);
/* What does not print or turns the direction of writing is shown as an escape, as everywhere in headstart. */
function show(text) {
  return text.replace(/[\p{Cc}\p{Cf}\p{Cn}\p{Co}\p{Cs}\p{Zl}\p{Zp}]/gu, (char) => {
    const code = char.codePointAt(0), [mark, digits] = code < 256 ? ["x", 2] : code < 65536 ? ["u", 4] : ["U", 8];
    return `\\${mark}${code.toString(16).padStart(digits, "0")}`;
  });
}
const named = (text, className = "") => el("bdi", { className, title: show(text) }, show(text));
const numberOf = (count) => count.toLocaleString("en");
const countOf = (count, word) => `${numberOf(count)} ${word}${count === 1 ? "" : "s"}`;
const megabytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MB`;
/* What is not 0 or 1 never reads as 0.0 or 100.0. */
function percent(frac) {
  if (frac > 0 && frac < 0.00001) return "<0.001 %";
  if (frac > 0.99999 && frac < 1) return ">99.999 %";
  for (let digits = 1; ; digits += 1) {
    const text = (100 * frac).toFixed(digits);
    if (digits === 3 || frac === 0 || frac === 1 || ![0, 100].includes(Number(text))) return `${text} %`;
  }
}
const say = (text) => { byId("said").textContent = text; };
const tell = (text) => { byId("message").textContent = text; };
const after = (seconds) => new Promise((resolve) => { setTimeout(resolve, 1000 * seconds); });

/* The server */
const server = { models: [], limits: {}, key: "", askForKey: null };
class Refused extends Error {
  constructor(code, reason) {
    super(reason);
    this.code = code;
  }
}
async function ask(path, { body, signal, onwait } = {}) {
  for (let tries = 1; ; tries += 1) {
    const headers = server.key ? { authorization: `Bearer ${server.key}` } : {};
    // Whatever a file says of itself, it goes as bytes: the server looks at what is inside.
    if (body) headers["content-type"] = "application/octet-stream";
    let answer, said;
    try {
      answer = await fetch(path, { method: body ? "POST" : "GET", body, signal, headers, cache: "no-store" });
      said = await answer.json();
    } catch (error) {
      if (signal?.aborted) throw error;
      if (body && !(await canRead(body))) throw new Refused("unreadable", "the file can no longer be read");
      throw new Refused("unreachable", "it may have been stopped, or the connection is lost");
    }
    if (answer.ok) return said;
    if (answer.status === 401) {
      await getKey();
      if (signal?.aborted) throw new DOMException("removed", "AbortError");
      tries -= 1;
    } else if ((answer.status === 503 || answer.status === 429) && tries < MAX_TRIES) {
      onwait?.();
      const seconds = Number(answer.headers.get("retry-after")) || 1;
      await after(Math.min(seconds, 10) * (0.5 + Math.random()));
      if (signal?.aborted) throw new DOMException("removed", "AbortError");
    } else {
      const code = said.code ?? `status-${answer.status}`, reason = said.error ?? "";
      throw new Refused(code, reason.startsWith(`${code}: `) ? reason.slice(code.length + 2) : reason);
    }
  }
}
const canRead = (blob) => blob.slice(0, 1).arrayBuffer().then(() => true, () => false);
function getKey() {
  server.askForKey ??= new Promise((resolve) => {
    const form = byId("key-form");
    byId("key-problem").textContent = server.key ? "The server does not take this key." : "";
    form.hidden = false;
    byId("key").focus();
    form.onsubmit = (event) => {
      event.preventDefault();
      server.key = byId("key").value.trim();
      byId("key").value = "";
      form.hidden = true;
      server.askForKey = null;
      resolve();
    };
  });
  return server.askForKey;
}

/* Pictures in the browser */
function draw(bitmap, maxSide) {
  const scale = Math.min(1, maxSide / Math.max(bitmap.width, bitmap.height));
  const width = Math.max(1, Math.round(bitmap.width * scale)), height = Math.max(1, Math.round(bitmap.height * scale));
  const canvas = el("canvas", { width, height }), context = canvas.getContext("2d");
  context.fillStyle = "#fff"; // transparent parts are laid on white, as the classifier sees them
  context.fillRect(0, 0, width, height);
  context.imageSmoothingQuality = "high";
  context.drawImage(bitmap, 0, 0, width, height);
  return canvas;
}
const encode = (canvas, type, quality) => new Promise((resolve) => { canvas.toBlob(resolve, type, quality); });
async function shrink(file) {
  const limit = server.limits.body_bytes;
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Refused("too-large", `${megabytes(file.size)} (limit ${megabytes(limit)}); this browser cannot make it smaller`);
  }
  try {
    for (const side of SHRUNK_SIDES_PX) {
      const canvas = draw(bitmap, side), body = await encode(canvas, "image/jpeg", 0.92);
      if (body && body.size <= limit) {
        const sizes = [bitmap, canvas].map(({ width, height }) => `${numberOf(width)} × ${numberOf(height)}`);
        return { body, note: `${megabytes(file.size)} is over the server's limit of ${megabytes(limit)}: sent as JPEG of ${sizes[1]} pixels instead of ${sizes[0]}.` };
      }
    }
  } finally {
    bitmap.close();
  }
  throw new Refused("too-large", `${megabytes(file.size)} (limit ${megabytes(limit)})`);
}
/* One after the other: a large picture takes much memory while it is decoded. */
let previews = Promise.resolve();
function makePreview(file, signal) {
  const made = previews.then(async () => {
    if (signal.aborted) return null;
    let bitmap;
    try {
      bitmap = await createImageBitmap(file);
    } catch {
      return null;
    }
    const { width, height } = bitmap, canvas = draw(bitmap, PREVIEW_PX);
    bitmap.close();
    const isSmall = Math.max(width, height) <= 160;
    const blob = await encode(canvas, isSmall ? "image/png" : "image/jpeg", 0.86);
    return blob && { url: URL.createObjectURL(blob), width: canvas.width, height: canvas.height, isSmall };
  });
  previews = made.catch(() => null);
  return made;
}

/* Heat maps: the grid is smoothed by Catmull and Rom's cubic, so that values, not colours, are mixed. */
function drawHeat(values) {
  const SIDE = 112, size = values.length;
  const largest = Math.max(...values.flat().map(Math.abs)) || 1;
  const weigh = Array.from({ length: SIDE }, (_, i) => {
    const place = (i + 0.5) / SIDE * size - 0.5, first = Math.floor(place), t = place - first;
    const weights = [-t + 2 * t ** 2 - t ** 3, 2 - 5 * t ** 2 + 3 * t ** 3, t + 4 * t ** 2 - 3 * t ** 3, t ** 3 - t ** 2];
    return weights.map((weight, k) => [Math.min(Math.max(first - 1 + k, 0), size - 1), weight / 2]);
  });
  const mix = (row, taps) => taps.reduce((total, [at, weight]) => total + weight * row[at], 0);
  const lines = values.map((row) => weigh.map((taps) => mix(row, taps)));
  const pixels = new ImageData(SIDE, SIDE);
  for (let y = 0; y < SIDE; y += 1) {
    for (let x = 0; x < SIDE; x += 1) {
      const value = weigh[y].reduce((total, [at, weight]) => total + weight * lines[at][x], 0) / largest;
      pixels.data.set([...(value > 0 ? [235, 64, 20] : [30, 110, 235]), 190 * Math.min(1, Math.abs(value))], 4 * (SIDE * y + x));
    }
  }
  const canvas = el("canvas", { width: SIDE, height: SIDE, className: "heat" });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
function makeMapSign() {
  const sign = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  sign.setAttribute("viewBox", "0 0 16 16");
  sign.setAttribute("class", "map");
  sign.setAttribute("aria-hidden", "true");
  for (const radius of [6.6, 3]) {
    const circle = document.createElementNS("http://www.w3.org/2000/svg", "circle");
    for (const [name, value] of [["cx", 8], ["cy", 8], ["r", radius]]) circle.setAttribute(name, value);
    sign.append(circle);
  }
  return sign;
}

/* One picture of the visit */
let lastNumber = 0;
class Picture {
  constructor(file, name, model, round) {
    lastNumber += 1;
    Object.assign(this, { file, name, model, round, number: lastNumber, state: "waiting", maps: new Map(), stop: new AbortController() });
    this.stage = el("div", { className: "stage" });
    this.body = el("div", { className: "outcome" });
    this.remove = button("×", () => visit.remove(this), { className: "quiet remove", ariaLabel: `Remove ${show(name)}` });
    const heading = el("h3", { id: `picture-${this.number}` }, named(name));
    this.card = el("li", { className: "card", tabIndex: -1 },
      el("article", { className: "inside" }, this.stage,
        el("div", { className: "told" },
          el("div", { className: "card-head" }, heading, server.models.length > 1 ? el("span", { className: "by" }, model.name) : null, this.remove),
          this.body)));
    this.card.firstChild.setAttribute("aria-labelledby", heading.id);
    this.showWaiting("Waiting");
    this.preview = makePreview(file, this.stop.signal).then((preview) => this.showPreview(preview));
  }
  showPreview(preview) {
    if (this.stop.signal.aborted) {
      if (preview) URL.revokeObjectURL(preview.url);
      return;
    }
    this.shown = preview;
    if (!preview) {
      this.card.classList.add("unseen");
      this.stage.replaceChildren(el("span", { className: "missing" }, "This browser cannot show it."));
      return;
    }
    const image = el("img", { src: preview.url, alt: "", draggable: false, className: preview.isSmall ? "pixels" : "" });
    this.sized = el("div", { className: "sized" }, image);
    this.sized.style.setProperty("--ratio", preview.width / preview.height);
    this.stage.replaceChildren(this.sized);
  }
  showWaiting(text) {
    this.card.ariaBusy = "true";
    this.body.replaceChildren(el("p", { className: "muted" }, text), el("div", { className: "waiting" }, el("span")));
  }
  async run() {
    this.state = "running";
    this.showWaiting("Looking");
    try {
      const { body, note } = this.file.size > server.limits.body_bytes ? await shrink(this.file) : { body: this.file };
      Object.assign(this, { sent: body, note });
      const said = await ask(`predict/${this.model.name}`, {
        body, signal: this.stop.signal, onwait: () => this.showWaiting("Waiting: the server is busy"),
      });
      const row = said.predictions[0];
      if (row.error) throw new Refused(row.error.code, row.error.reason);
      this.result = { ...row, version: said.version };
      this.state = "done";
      this.showResult();
    } catch (error) {
      if (this.stop.signal.aborted) return;
      this.error = error instanceof Refused ? error : new Refused("failed", String(error.message));
      this.state = "failed";
      this.showError();
    }
    this.card.ariaBusy = "false";
  }
  showError() {
    const { code, message } = this.error;
    const canRetry = ["unreachable", "overloaded", "stopping", "loading", "too-slow", "internal"].includes(code);
    const reason = message && message[0].toUpperCase() + message.slice(1);
    this.card.classList.add("wrong");
    this.body.replaceChildren(
      el("div", { className: "refused" }, el("b", {}, TITLES[code] ?? "It could not be classified"),
        el("p", {}, show(reason)), el("p", { className: "muted" }, el("code", {}, code))),
      el("div", { className: "tools" }, canRetry ? button("Try again", () => this.retry()) : null));
  }
  retry() {
    this.card.classList.remove("wrong");
    this.state = "waiting";
    this.card.focus();
    visit.pump();
  }
  showResult() {
    const { none_of_these: isUnfamiliar, familiarity, probabilities } = this.result;
    const classes = Object.entries(probabilities).sort(([, a], [, b]) => b - a);
    this.list = el("ol", { className: "classes" });
    const fill = (count) => this.list.replaceChildren(...classes.slice(0, count).map((each) => this.makeRow(...each)));
    fill(SHOWN_CLASSES);
    this.card.classList.toggle("unfamiliar", isUnfamiliar);
    this.legend = el("p", { className: "legend", hidden: true });
    this.tools = el("div", { className: "tools" });
    if (classes.length > SHOWN_CLASSES) {
      const more = button(`All ${numberOf(classes.length)} classes`, () => {
        const isAll = this.list.classList.toggle("all");
        more.ariaExpanded = String(isAll);
        fill(isAll ? classes.length : SHOWN_CLASSES);
        if (isAll && !this.model.heat_maps) Object.assign(this.list, { tabIndex: 0, ariaLabel: "All classes" });
        this.markRow();
      }, { ariaExpanded: "false" });
      this.tools.append(more);
    }
    if (this.model.num_training_pictures) {
      this.nears = el("div", { className: "nears", hidden: true, id: `nears-${this.number}` });
      const near = button("Nearest training pictures", () => this.toggleNears(near), { ariaExpanded: "false" });
      near.setAttribute("aria-controls", this.nears.id);
      this.tools.append(near);
    }
    const none = isUnfamiliar && el("p", { className: "none" }, el("b", {}, "Probably none of these"),
      el("span", { className: "muted" }, `Familiarity ${familiarity < 0.001 ? "under 0.1 %" : percent(familiarity)}`));
    this.body.replaceChildren(...[none, this.list, this.legend, this.tools, this.nears].filter(Boolean),
      ...(this.note ? [el("p", { className: "note" }, this.note)] : []));
    this.showTry();
  }
  makeRow(label, probability) {
    const fill = el("span");
    fill.style.width = `${100 * probability}%`;
    const parts = [named(label, label.length > 32 ? "long" : ""), el("span", { className: "percent" }, percent(probability)), el("span", { className: "bar" }, fill)];
    if (!this.model.heat_maps) return el("li", { className: "row" }, ...parts);
    const row = button("", () => this.toggleMap(label), { className: "row", ariaPressed: "false", title: `What spoke for ${show(label)}` });
    row.label = label;
    row.append(...parts, makeMapSign());
    return el("li", {}, row);
  }
  markRow() {
    for (const row of this.list.querySelectorAll("button.row")) row.ariaPressed = String(row.label === this.explained);
  }
  async toggleMap(label) {
    this.explained = this.explained === label ? null : label;
    this.markRow();
    this.hideMap();
    if (this.explained === null) return;
    this.legend.replaceChildren("Computing the heat map");
    this.legend.hidden = false;
    await this.preview;
    try {
      const query = new URLSearchParams({ class: label });
      if (!this.maps.has(label)) {
        this.maps.set(label, await ask(`heat-map/${this.model.name}?${query}`, { body: this.sent, signal: this.stop.signal }));
      }
      if (this.explained === label) this.showMap(this.maps.get(label));
    } catch (error) {
      if (!this.stop.signal.aborted && this.explained === label) this.legend.replaceChildren(`No heat map: ${show(error.message)}.`);
    }
  }
  hideMap() {
    this.legend.hidden = true;
    this.sized?.querySelector(".heat")?.remove();
    this.sized?.classList.remove("explained");
  }
  showMap({ class: label, values, box: [top, left, height, width] }) {
    if (!this.sized) {
      this.legend.replaceChildren("No heat map: this browser cannot show the picture.");
      return;
    }
    const canvas = drawHeat(values);
    const sides = { top, left, height, width };
    for (const [side, frac] of Object.entries(sides)) canvas.style[side] = `${100 * frac}%`;
    this.sized.append(canvas);
    this.sized.classList.add("explained");
    this.legend.replaceChildren(el("i", { className: "for" }), "spoke for it", el("i", { className: "against" }), "against it");
    say(`The heat map for ${show(label)} is shown`);
  }
  async toggleNears(toggle) {
    const isOpen = toggle.ariaExpanded !== "true";
    toggle.ariaExpanded = String(isOpen);
    this.nears.hidden = !isOpen;
    if (!isOpen || this.nears.childElementCount) return;
    this.nears.ariaBusy = "true";
    try {
      const path = `neighbours/${this.model.name}?count=${NUM_NEAR}`;
      const { neighbours } = await ask(path, { body: this.sent, signal: this.stop.signal });
      this.nears.replaceChildren(...neighbours.map((near) => this.makeNear(near)));
      say(`Nearest: ${neighbours.map(({ label }) => show(label)).join(", ")}`);
    } catch (error) {
      if (!this.stop.signal.aborted) tell(`No training pictures: ${show(error.message)}`);
      toggle.ariaExpanded = "false";
      this.nears.hidden = true;
    }
    this.nears.ariaBusy = "false";
  }
  makeNear({ label, name, similarity, thumbnail, problem }) {
    const title = `${show(label)}, similarity ${similarity.toFixed(2)}\n${show(name)}`;
    const picture = thumbnail
      ? el("img", { src: thumbnail, alt: `Training picture of ${show(label)}`, draggable: false, onload: ({ target }) => target.classList.toggle("pixels", target.naturalWidth < 64) })
      : el("span", { className: "missing", title: show(problem) }, "?");
    return el("figure", { className: "near", title }, el("span", { className: "picture" }, picture),
      el("figcaption", {}, named(label), ` ${similarity.toFixed(2)}`));
  }
  /* With several classifiers, the same picture can be given to the one that is chosen now. */
  showTry() {
    if (this.state !== "done") return;
    this.again?.remove();
    if (visit.model === this.model) return;
    this.again = button(`Try ${visit.model.name}`, () => visit.add([[this.file, this.name]]));
    this.tools.append(this.again);
  }
  get group() {
    return this.state === "failed" ? "\0failed" : this.result?.none_of_these ? "\0none" : this.result?.predicted ?? "";
  }
  discard() {
    this.stop.abort();
    if (this.shown) URL.revokeObjectURL(this.shown.url);
    this.card.remove();
  }
}

/* The visit */
const visit = {
  model: null,
  pictures: [],
  numRunning: 0,
  round: 0,
  add(files) {
    this.round += 1;
    const added = files.map(([file, name]) => new Picture(file, name, this.model, this.round));
    this.pictures.push(...added);
    this.batch = { size: (this.batch?.size ?? 0) + added.length, done: this.batch?.done ?? 0, failed: this.batch?.failed ?? 0 };
    byId("filter").value = "";
    this.arrange();
    this.pump();
  },
  pump() {
    const waiting = this.pictures.filter(({ state }) => state === "waiting");
    for (const picture of waiting.slice(0, AT_ONCE - this.numRunning)) {
      this.numRunning += 1;
      picture.run().then(() => {
        this.numRunning -= 1;
        if (this.pictures.includes(picture)) this.note(picture);
        this.pump();
      });
    }
    if (!this.numRunning && !waiting.length) this.finish();
  },
  note(picture) {
    this.batch ??= { size: 1, done: 0, failed: 0 };
    this.batch.done += 1;
    this.batch.failed += picture.state === "failed";
    if (this.batch.size > 1) byId("visit-count").textContent = `${numberOf(this.batch.done)} of ${numberOf(this.batch.size)} done`;
    this.batch.last = picture;
    this.fillFilter();
  },
  finish() {
    const batch = this.batch;
    this.batch = null;
    this.arrange();
    if (!batch?.last) return;
    const { name, state, result, error } = batch.last;
    if (batch.size > 1) say(`${countOf(batch.done, "picture")} done${batch.failed ? `, ${numberOf(batch.failed)} with problems` : ""}`);
    else if (state === "failed") say(`${show(name)}: ${TITLES[error.code] ?? "It could not be classified"}`);
    else say(`${show(name)}: ${result.none_of_these ? "probably none of these" : `${show(result.predicted)}, ${percent(result.probability)}`}`);
  },
  remove(picture) {
    const shown = this.inOrder(), next = shown[shown.indexOf(picture) + 1] ?? shown[shown.indexOf(picture) - 1];
    this.pictures = this.pictures.filter((each) => each !== picture);
    if (this.batch) this.batch.size -= picture.state === "waiting" || picture.state === "running";
    picture.discard();
    this.arrange();
    (next?.remove ?? byId("choose")).focus();
    say(`${show(picture.name)} removed`);
  },
  clear() {
    for (const picture of this.pictures) picture.discard();
    Object.assign(this, { pictures: [], batch: null });
    this.arrange();
    tell("");
    byId("choose").focus();
    say("Cleared");
  },
  inOrder() {
    const filter = byId("filter").value, isUnsure = byId("order").value === "unsure";
    const shown = this.pictures.filter((picture) => !filter || picture.group === filter);
    const doubt = ({ result }) => (result ? result.probability - (result.none_of_these ? 1 : 0) : 2);
    return shown.sort((a, b) => (isUnsure ? doubt(a) - doubt(b) : b.round - a.round)); // those that came together stay in order
  },
  /* Cards stay where they are in the document unless their order changes: focus is not lost. */
  arrange() {
    const count = this.pictures.length, cards = this.inOrder().map(({ card }) => card), list = byId("cards");
    document.body.classList.toggle("has-pictures", count > 0);
    byId("visit-head").hidden = !count;
    byId("visit-count").textContent = countOf(count, "picture");
    byId("filter-label").hidden = byId("order-label").hidden = count < TOOLS_FROM;
    this.fillFilter();
    if (cards.length !== list.childElementCount || cards.some((card, place) => card !== list.children[place])) {
      const focused = document.activeElement;
      list.replaceChildren(...cards);
      if (list.contains(focused)) focused.focus();
    }
  },
  fillFilter() {
    const counts = new Map();
    for (const { group } of this.pictures) if (group) counts.set(group, (counts.get(group) ?? 0) + 1);
    const words = { "\0none": "none of these", "\0failed": "problems" };
    const select = byId("filter"), chosen = select.value;
    if (this.numRunning && document.activeElement === select) return; // it may be open
    const groups = [...counts].sort(([a, m], [b, n]) => a.startsWith("\0") - b.startsWith("\0") || n - m);
    select.replaceChildren(el("option", { value: "" }, `all (${this.pictures.length})`),
      ...groups.map(([group, n]) => el("option", { value: group }, `${words[group] ?? show(group)} (${n})`)));
    select.value = counts.has(chosen) ? chosen : "";
  },
  /* The columns of `headstart predict --format csv`, those of this page after the name. */
  download() {
    // A classifier that was replaced meanwhile may answer with other classes than it had when the page was opened.
    const labels = [...new Set(this.pictures.flatMap(({ model, result }) => (result ? [...model.labels, ...Object.keys(result.probabilities)] : [])))];
    const quote = (text) => (/[,"\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
    const rows = [["name", "model", "version", "predicted", "probability", ...labels.map((label) => `probability_${label}`), "familiarity", "none_of_these", "error"]];
    for (const { name, model, result, error } of this.pictures) {
      if (!result && !error) continue;
      rows.push([name, model.name, result?.version ?? "", result?.predicted ?? "", result?.probability ?? "",
        ...labels.map((label) => result?.probabilities[label] ?? ""), result?.familiarity ?? "",
        result?.none_of_these ?? "", error ? `${error.code}: ${error.message}` : ""]);
    }
    const text = rows.map((row) => row.map((field) => quote(String(field))).join(",")).join("\n");
    const url = URL.createObjectURL(new Blob([`${text}\n`], { type: "text/csv" }));
    el("a", { href: url, download: "predictions.csv" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  },
};

/* Ways in */
function addFiles(files) {
  const found = [...files].map((file) => [file, file.name || "picture"]);
  if (!visit.model) tell("The classifiers are not there yet.");
  else if (found.length) {
    tell("");
    visit.add(found);
  }
}
const nameByTime = (word) => `${word} ${new Date().toTimeString().slice(0, 8)}`;
async function listFolder(entry, path) {
  const reader = entry.createReader(), entries = [];
  for (;;) {
    const part = await new Promise((resolve, reject) => { reader.readEntries(resolve, reject); });
    if (!part.length) break;
    entries.push(...part);
  }
  entries.sort((a, b) => a.name.localeCompare(b.name, "en", { numeric: true }));
  const files = [];
  for (const each of entries) {
    const name = `${path}${each.name}`;
    if (each.name.startsWith(".")) continue;
    if (each.isDirectory) files.push(...await listFolder(each, `${name}/`));
    else if (PICTURE_NAME.test(each.name)) files.push([await new Promise((resolve, reject) => { each.file(resolve, reject); }), name]);
  }
  return files;
}
async function addDropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()), plain = [...transfer.files];
  const folders = entries.filter((entry) => entry?.isDirectory);
  if (!folders.length) {
    if (plain.length) addFiles(plain);
    else tell("Drop picture files. A picture of another page: save it first, or copy and paste it.");
    return;
  }
  const names = new Set(folders.map(({ name }) => name));
  addFiles(plain.filter((file) => !names.has(file.name)));
  for (const folder of folders) {
    tell(`Reading ${show(folder.name)}`);
    const files = await listFolder(folder, `${folder.name}/`);
    tell(files.length ? "" : `${show(folder.name)} holds no pictures.`);
    if (files.length && visit.model) visit.add(files);
  }
}
let depth = 0;
addEventListener("dragenter", (event) => {
  if (!event.dataTransfer?.types.includes("Files") || byId("camera").open) return;
  depth += 1;
  document.body.classList.add("dropping");
});
addEventListener("dragleave", () => {
  depth = Math.max(0, depth - 1);
  if (!depth) document.body.classList.remove("dropping");
});
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  depth = 0;
  document.body.classList.remove("dropping");
  if (event.dataTransfer && !byId("camera").open) addDropped(event.dataTransfer).catch((error) => tell(show(String(error.message))));
});
addEventListener("paste", (event) => {
  if (event.target.closest?.("input")) return;
  const files = [...(event.clipboardData?.files ?? [])];
  if (!files.length) {
    tell("There is no picture in the clipboard.");
    return;
  }
  const name = nameByTime("Pasted");
  addFiles(files.map((file) => (file.name === "image.png" ? new File([file], name, { type: file.type }) : file)));
});
for (const input of [byId("files"), byId("capture")]) {
  input.onchange = () => {
    addFiles(input.files);
    input.value = "";
  };
}
byId("choose").onclick = () => byId("files").click();

/* Camera */
const camera = {
  stream: null, devices: [], current: 0, count: 0,
  async open() {
    if (!navigator.mediaDevices?.getUserMedia && matchMedia("(pointer: coarse)").matches) {
      byId("capture").click(); // the phone's own camera, which needs no permission of the page
      return;
    }
    Object.assign(this, { count: 0, current: 0, devices: [] });
    byId("camera-count").textContent = "";
    byId("other-camera").hidden = true;
    byId("camera").showModal();
    if (await this.start({ facingMode: "environment" })) byId("shoot").focus();
    if (!this.stream) return;
    this.devices = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
    byId("other-camera").hidden = this.devices.length < 2;
  },
  async start(wanted) {
    this.stop();
    const problem = byId("camera-problem"), video = byId("video");
    problem.textContent = "";
    if (!navigator.mediaDevices?.getUserMedia) {
      this.fail("Browsers give the camera only to pages from localhost or over https. Choose a picture instead.");
      return false;
    }
    try {
      const stream = await navigator.mediaDevices.getUserMedia({ video: { ...wanted, width: { ideal: 1920 }, height: { ideal: 1080 } } });
      if (!byId("camera").open) {
        for (const track of stream.getTracks()) track.stop();
        return false;
      }
      this.stream = stream;
    } catch (error) {
      this.fail({
        NotAllowedError: "The camera is not allowed for this page. The browser's settings for this address can allow it.",
        NotFoundError: "No camera was found.",
        NotReadableError: "The camera is in use by another program.",
      }[error.name] ?? `The camera cannot be used: ${show(error.message)}`);
      return false;
    }
    const settings = this.stream.getVideoTracks()[0].getSettings();
    video.classList.toggle("mirrored", settings.facingMode !== "environment");
    video.hidden = byId("shoot").hidden = false;
    video.srcObject = this.stream;
    return true;
  },
  fail(text) {
    byId("camera-problem").textContent = text;
    byId("video").hidden = byId("shoot").hidden = true;
    byId("camera-close").focus();
  },
  async shoot() {
    const video = byId("video");
    if (!video.videoWidth) return;
    const canvas = el("canvas", { width: video.videoWidth, height: video.videoHeight });
    canvas.getContext("2d").drawImage(video, 0, 0);
    const blob = await encode(canvas, "image/jpeg", 0.95);
    this.count += 1;
    byId("camera-count").textContent = `${countOf(this.count, "photo")} taken`;
    addFiles([new File([blob], nameByTime("Photo"), { type: "image/jpeg" })]);
  },
  async next() {
    this.current = (this.current + 1) % this.devices.length;
    await this.start({ deviceId: { exact: this.devices[this.current].deviceId } });
  },
  stop() {
    for (const track of this.stream?.getTracks() ?? []) track.stop();
    this.stream = null;
    byId("video").srcObject = null;
  },
};
byId("photograph").onclick = () => camera.open();
byId("shoot").onclick = () => camera.shoot();
byId("other-camera").onclick = () => camera.next();
byId("camera-close").onclick = () => byId("camera").close();
byId("camera").addEventListener("close", () => camera.stop());

/* The rest of the page */
byId("download").onclick = () => visit.download();
byId("clear").onclick = () => visit.clear();
byId("filter").onchange = () => visit.arrange();
byId("order").onchange = () => visit.arrange();
const theme = byId("theme");
theme.ariaPressed = String(matchMedia("(prefers-color-scheme: dark)").matches);
theme.onclick = () => {
  const isDark = theme.ariaPressed !== "true";
  theme.ariaPressed = String(isDark);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
};
function tellClasses({ labels }) {
  const short = labels.map(show);
  if (labels.length <= 6 && short.join(", ").length <= 70) return el("span", {}, ...labels.flatMap((label, place) => [place ? ", " : "", named(label)]));
  const list = el("ul", { className: "names", tabIndex: 0, ariaLabel: "Classes" }, ...labels.map((label) => el("li", {}, named(label))));
  list.setAttribute("role", "list");
  return el("details", {}, el("summary", {}, `${numberOf(labels.length)} classes`), list);
}
function showModel(model) {
  visit.model = model;
  byId("classes").replaceChildren(tellClasses(model));
  for (const picture of visit.pictures) picture.showTry();
}
async function start() {
  const { models, limits } = await ask("page.json", { onwait: () => tell("The classifiers are being loaded.") });
  tell("");
  Object.assign(server, { models, limits });
  const classes = el("span", { id: "classes" });
  if (models.length > 1) {
    const chooser = el("select", { id: "model" }, ...models.map(({ name }) => el("option", {}, name)));
    chooser.onchange = () => showModel(models[chooser.selectedIndex]);
    byId("facts").append(el("label", {}, "Classifier ", chooser));
  } else {
    byId("title").textContent = models[0].name;
    document.title = `${models[0].name} · headstart`;
  }
  byId("facts").append(classes);
  byId("about-heat").hidden = !models.some((model) => model.heat_maps);
  byId("about-near").hidden = !models.some((model) => model.num_training_pictures);
  showModel(models[0]);
}
start().catch((error) => tell(`The classifiers cannot be listed: ${show(error.message)}`));
