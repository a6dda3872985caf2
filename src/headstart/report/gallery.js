const data = JSON.parse(document.getElementById("data").textContent);
const GAP = 12, MIN_CARD_WIDTH = 300, CARD_HEIGHT = 184, DECIDING_HEIGHT = 222, CARD_PICTURE = 132;
const isNarrow = innerWidth < 700;
const OPEN_UP_TO = isNarrow ? 8 : 24, ROWS_WHEN_CLOSED = isNarrow ? 4 : 2, PRINTED = 60, MATRIX_WHOLE_UP_TO = 40;
const numberOf = (n) => n.toLocaleString("en");
const byId = (id) => document.getElementById(id);
const reduced = matchMedia("(prefers-reduced-motion: reduce)");

function el(tag, props, ...children) {
  const { data: dataset, ...rest } = props ?? {};
  const node = Object.assign(document.createElement(tag), rest);
  Object.assign(node.dataset, dataset);
  node.append(...children.filter((child) => child != null));
  return node;
}
const button = (text, onclick, props) => el("button", { type: "button", onclick, ...props }, text);
const named = (number, className) => el("bdi", { className: className ?? "", title: data.classes[number] }, data.classes[number]);
function say(text) { byId("said").textContent = text; }

/* Copying: the clipboard's own interface is closed to pages from files in some browsers. */
async function copy(text, from) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const field = el("textarea", { value: text, className: "hidden" });
    (from.closest("dialog") ?? document.body).append(field);
    field.select();
    document.execCommand("copy");
    field.remove();
    from.focus();
  }
  const before = from.textContent;
  from.textContent = "Copied";
  say("Copied");
  setTimeout(() => { from.textContent = before; }, 1200);
}

/* Pictures */
function describe(item) {
  const parts = [];
  if (item.label != null) parts.push(`labelled ${data.classes[item.label]}`);
  if (item.predicted != null) parts.push(`taken for ${data.classes[item.predicted]}`);
  return [...parts, item.path].join(", ");
}
function frame(number, box, alt, heat) {
  const picture = data.pictures[number];
  const holder = el("span", { className: "frame" });
  if (typeof picture === "string") {
    holder.append(el("span", { className: "missing", title: picture }, box < 80 ? "?" : picture));
    return holder;
  }
  const [code, ownWidth, ownHeight, isExact] = picture;
  let scale = box / Math.max(ownWidth, ownHeight);
  if (scale > 1 && isExact) scale = Math.floor(scale);
  const width = Math.max(1, Math.round(ownWidth * scale)), height = Math.max(1, Math.round(ownHeight * scale));
  const src = `data:image/${isExact ? "webp" : "jpeg"};base64,${code}`;
  const image = el("img", { alt, width, height, decoding: "async", src, draggable: false });
  if (isExact && scale > 1) image.className = "pixels";
  const sized = el("span", { className: "sized" }, image);
  sized.style.width = `${width}px`;
  sized.style.height = `${height}px`;
  if (heat) sized.append(drawHeat(heat, width, height));
  holder.append(sized);
  return holder;
}
function drawHeat([rows, columns, code, [top, left, boxHeight, boxWidth]], width, height) {
  const canvas = el("canvas", { width: columns, height: rows, className: "heat" });
  const pixels = new ImageData(columns, rows), values = atob(code);
  for (let i = 0; i < values.length; i += 1) {
    const value = (values.charCodeAt(i) - 128) / 127;
    pixels.data.set([...(value > 0 ? [235, 64, 20] : [30, 110, 235]), 190 * Math.abs(value)], 4 * i);
  }
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  Object.assign(canvas.style, {
    left: `${left * width}px`, top: `${top * height}px`, width: `${boxWidth * width}px`, height: `${boxHeight * height}px`,
  });
  return canvas;
}
function tellPath(path) {
  const cut = path.lastIndexOf(path.includes("/") ? "/" : "\\") + 1;
  return el("span", { className: "path" },
    el("span", { className: "where", title: path }, el("span", { className: "folder" }, path.slice(0, cut)), el("bdi", {}, path.slice(cut))),
    button("Copy", (event) => copy(path, event.currentTarget), { className: "copy", ariaLabel: `Copy the path ${path}` }));
}
function tellAnswer(item) {
  const isWrong = item.label != null && item.predicted != null && item.label !== item.predicted;
  return el("span", { className: "answer" },
    item.label == null ? null : el("span", { className: "line" }, el("small", {}, "label "), named(item.label)),
    item.predicted == null ? null
      : el("span", { className: isWrong ? "line wrong" : "line right" }, el("small", {}, "answer "), named(item.predicted)),
    item.percent == null ? null : el("span", { className: "percent" }, `${item.percent} %`));
}
function tellNeighbour([picture, label, similarity, path], item, box) {
  const side = label === item.label ? "same" : label === item.predicted ? "other" : "";
  const text = `${data.classes[label]}, similarity ${similarity.toFixed(2)}`;
  return el("span", { className: `near ${side}`, title: `${text}\n${path}` }, frame(picture, box, `Near it: ${text}`));
}

/* Decisions: kept in memory until they are downloaded. */
const decisions = new Map();
const keyOf = (item) => `${item.key}\n${item.sha256 ?? ""}`;
function decide(item, decision, newLabel) {
  if (decision) decisions.set(keyOf(item), { item, decision, newLabel });
  else decisions.delete(keyOf(item));
  for (const gallery of galleries) gallery.showDecisions();
  viewer.showDecision();
}
function makeDecisionBar(item, card) {
  const bar = el("div", { className: "decide", role: "group", ariaLabel: "Decision on this label" });
  const keep = button("Keep", () => decide(item, "keep"), { title: "The label is right" });
  const choose = el("select", { ariaLabel: "Give another class" });
  const placeholder = el("option", { value: "" }, "Other class");
  choose.append(placeholder);
  const fill = () => {
    if (choose.length > 2) return;
    const order = data.classes.map((_, number) => number).filter((number) => number !== item.label);
    order.sort((a, b) => (b === item.predicted) - (a === item.predicted));
    const chosen = choose.value;
    choose.replaceChildren(placeholder, ...order.map((number) => el("option", { value: number }, data.classes[number])));
    choose.value = chosen;
  };
  choose.addEventListener("focus", fill);
  choose.addEventListener("pointerdown", fill);
  choose.onchange = () => (choose.value === "" ? decide(item) : decide(item, "relabel", Number(choose.value)));
  const drop = button("Leave out", () => decide(item, "leave-out"));
  const undo = button("Undo", () => { decide(item); keep.focus(); });
  bar.append(keep, choose, drop, undo);
  bar.show = () => {
    const made = decisions.get(keyOf(item));
    keep.ariaPressed = String(made?.decision === "keep");
    drop.ariaPressed = String(made?.decision === "leave-out");
    undo.disabled = !made;
    if (made?.decision === "relabel") fill();
    choose.value = made?.decision === "relabel" ? made.newLabel : "";
    choose.classList.toggle("chosen", made?.decision === "relabel");
    if (!card) return;
    if (made) card.dataset.made = made.decision;
    else delete card.dataset.made;
  };
  bar.show();
  return bar;
}
function downloadDecisions() {
  const quote = (text) => (/[,"\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  const name = (number) => (number == null ? "" : data.names[number]);
  const lines = ["path,sha256,label,decision,new_label"];
  for (const { item, decision, newLabel } of decisions.values()) {
    lines.push([item.key, item.sha256 ?? "", name(item.label), decision, name(newLabel)].map(quote).join(","));
  }
  const url = URL.createObjectURL(new Blob([`${lines.join("\n")}\n`], { type: "text/csv" }));
  el("a", { href: url, download: "decisions.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/* Galleries: cards of one height, only those in view in the document. */
class Gallery {
  constructor(root, items, { decides = false, startsOpen = false } = {}) {
    Object.assign(this, { root, all: items, items, decides, cards: new Map(), showsHeat: false });
    this.isOpen = startsOpen || items.length <= OPEN_UP_TO;
    this.rowHeight = (decides ? DECIDING_HEIGHT : CARD_HEIGHT) + GAP;
    this.tools = el("div", { className: "toolbar" });
    this.list = el("div", { className: "cards", role: "list" });
    (root.querySelector(".gallery-head") ?? root).append(this.tools);
    root.append(this.list);
    this.makeTools(startsOpen);
    this.layout();
    this.list.addEventListener("focusin", (event) => {
      const position = event.target.closest(".card")?.ariaPosInSet;
      if (position) this.drawInView(undefined, Math.floor((position - 1) / this.columns));
    });
    this.observer = new ResizeObserver(() => { if (this.list.clientWidth !== this.width) this.layout(); });
    this.observer.observe(this.list);
  }
  makeTools(startsOpen) {
    if (this.all.length > OPEN_UP_TO) {
      const field = el("input", { type: "search", placeholder: "Class or path", ariaLabel: "Show only pictures of a class or path" });
      field.oninput = () => this.filter(field.value);
      this.tools.append(field);
    }
    if (this.all.some((item) => item.heat)) {
      const toggle = button("Heat maps", () => {
        this.showsHeat = !this.showsHeat;
        toggle.ariaPressed = String(this.showsHeat);
        this.layout();
      }, { ariaPressed: "false", title: "Red spoke for the answer, blue against it" });
      this.tools.append(toggle);
    }
    if (this.decides && this.all.length) {
      this.download = button("Download decisions.csv", downloadDecisions);
      this.tools.append(this.download);
    }
    if (this.all.length > OPEN_UP_TO && !startsOpen) {
      this.more = button("", () => this.toggle());
      this.foot = button("", () => this.toggle(), { className: "more" });
      this.tools.append(this.more);
      this.root.append(this.foot);
    }
    this.empty = el("p", { className: "muted" }, this.all.length ? "None fits." : this.decides ? "" : "There are none.");
    this.root.append(this.empty);
    this.showDecisions();
  }
  toggle() {
    const before = this.list.getBoundingClientRect().top, shown = this.rows * this.columns;
    this.isOpen = !this.isOpen;
    this.layout();
    if (!this.isOpen) return this.root.scrollIntoView({ block: "start" });
    scrollBy(0, this.list.getBoundingClientRect().top - before);
    this.drawInView();
    this.cards.get(shown)?.querySelector("button").focus({ preventScroll: true });
  }
  filter(text) {
    const wanted = text.toLowerCase();
    this.items = this.all.filter((item) => [data.classes[item.label], data.classes[item.predicted], item.path, item.note]
      .some((part) => part?.toLowerCase().includes(wanted)));
    say(`${numberOf(this.items.length)} pictures`);
    this.layout();
  }
  print() {
    if (this.items.length > PRINTED) this.list.dataset.cut = `The first ${PRINTED} of ${numberOf(this.items.length)} are printed.`;
    this.draw(0, PRINTED);
  }
  showDecisions() {
    if (!this.download) return;
    this.download.disabled = decisions.size === 0;
    this.download.textContent = decisions.size ? `Download decisions.csv (${decisions.size})` : "Download decisions.csv";
    for (const card of this.cards.values()) card.querySelector(".decide").show();
  }
  layout() {
    const width = this.list.clientWidth;
    this.width = width;
    if (!width) return;
    this.columns = Math.max(1, Math.floor((width + GAP) / (MIN_CARD_WIDTH + GAP)));
    this.cardWidth = (width - GAP * (this.columns - 1)) / this.columns;
    const rows = Math.ceil(this.items.length / this.columns);
    this.rows = this.isOpen ? rows : Math.min(rows, ROWS_WHEN_CLOSED);
    this.list.style.height = `${Math.max(0, this.rows * this.rowHeight - GAP)}px`;
    this.empty.hidden = this.items.length > 0;
    this.root.classList.toggle("open", this.isOpen && Boolean(this.more));
    for (const each of [this.more, this.foot]) {
      if (!each) continue;
      each.textContent = this.isOpen ? "Show fewer" : `Show all ${numberOf(this.items.length)}`;
      each.ariaExpanded = String(this.isOpen);
    }
    this.cards.clear();
    this.list.replaceChildren();
    this.drawInView();
  }
  /* The rows in view and one beyond, so that the next card is there when the focus moves on. */
  drawInView(top = this.list.getBoundingClientRect().top, focusedRow = null) {
    if (!this.width) return;
    let first = Math.floor(-top / this.rowHeight) - 1, end = Math.ceil((innerHeight - top) / this.rowHeight) + 1;
    if (focusedRow != null) [first, end] = [Math.min(first, focusedRow - 1), Math.max(end, focusedRow + 2)];
    this.draw(Math.max(0, first) * this.columns, Math.min(this.rows, end) * this.columns);
  }
  draw(first, end) {
    let next = null;
    end = Math.min(end, this.items.length);
    for (const [index, card] of this.cards) {
      if (index >= first && index < end) continue;
      if (card.contains(document.activeElement)) {
        if (index >= end) next = card;
        continue;
      }
      card.remove();
      this.cards.delete(index);
    }
    for (let index = end - 1; index >= first; index -= 1) {
      if (!this.cards.has(index)) {
        const card = this.makeCard(index);
        this.cards.set(index, card);
        this.list.insertBefore(card, next);
      }
      next = this.cards.get(index);
    }
  }
  makeCard(index) {
    const item = this.items[index], heat = this.showsHeat ? item.heat : null;
    const card = el("article", { className: this.decides ? "card deciding" : "card", role: "listitem", ariaSetSize: this.items.length, ariaPosInSet: index + 1 },
      button(frame(item.picture, CARD_PICTURE, describe(item), heat), () => viewer.open(this, index), { className: "picture", ariaLabel: `Open: ${describe(item)}` }),
      el("div", { className: "said" }, tellAnswer(item),
        item.note ? el("span", { className: "note", title: item.note }, item.note) : null,
        item.near ? el("span", { className: "nears" }, ...item.near.slice(0, 4).map((near) => tellNeighbour(near, item, 32))) : null),
      tellPath(item.path));
    if (this.decides) card.append(makeDecisionBar(item, card));
    Object.assign(card.style, {
      width: `${this.cardWidth}px`, height: `${this.rowHeight - GAP}px`,
      left: `${(index % this.columns) * (this.cardWidth + GAP)}px`, top: `${Math.floor(index / this.columns) * this.rowHeight}px`,
    });
    return card;
  }
}
const galleries = new Set();
addEventListener("resize", () => { for (const gallery of galleries) gallery.drawInView(); });
function makeGallery(...args) {
  const gallery = new Gallery(...args);
  galleries.add(gallery);
  return gallery;
}
let isWaiting = false;
document.addEventListener("scroll", () => {
  if (isWaiting) return;
  isWaiting = true;
  requestAnimationFrame(() => {
    isWaiting = false;
    const tops = [...galleries].map((gallery) => [gallery, gallery.list.getBoundingClientRect()]);
    for (const [gallery, { top, bottom }] of tops) if (bottom > -600 && top < innerHeight + 600) gallery.drawInView(top);
  });
}, { capture: true, passive: true });

/* One picture, large */
const viewer = {
  dialog: byId("viewer"),
  open(gallery, index) {
    Object.assign(this, { gallery, index, showsHeat: gallery.showsHeat });
    this.show();
    if (!this.dialog.open) this.dialog.showModal();
    this.show();
  },
  move(step) {
    this.index = Math.min(Math.max(this.index + step, 0), this.gallery.items.length - 1);
    this.show();
  },
  show() {
    const { items } = this.gallery, item = items[this.index];
    byId("viewer-title").textContent = `${numberOf(this.index + 1)} of ${numberOf(items.length)}`;
    const box = Math.max(160, Math.min(512, innerWidth - 64, innerHeight - 200));
    const focused = document.activeElement?.dataset.role;
    const picture = data.pictures[item.picture];
    const pixels = typeof picture === "string" ? null
      : `${picture[1]} × ${picture[2]} px${picture[3] ? ", the file's own pixels" : ", reduced or compressed for this page"}`;
    this.bar = this.gallery.decides ? makeDecisionBar(item) : null;
    byId("viewer-body").replaceChildren(
      el("div", { className: "stage" }, frame(item.picture, box, describe(item), this.showsHeat ? item.heat : null)),
      el("div", { className: "said" },
        el("div", { className: "toolbar" },
          button("← Previous", () => this.move(-1), { disabled: this.index === 0, data: { role: "previous" } }),
          button("Next →", () => this.move(1), { disabled: this.index === items.length - 1, data: { role: "next" } }),
          item.heat ? button("Heat map", () => { this.showsHeat = !this.showsHeat; this.show(); }, { ariaPressed: String(this.showsHeat), data: { role: "heat" } }) : null),
        tellAnswer(item),
        item.heat && this.showsHeat ? el("p", { className: "muted" }, "Red spoke for the answer, blue against it.") : null,
        item.note ? el("p", {}, item.note) : null, this.bar, tellPath(item.path),
        pixels ? el("p", { className: "muted" }, pixels) : null,
        item.near ? el("h3", {}, "Pictures nearest to it") : null,
        item.near ? el("div", { className: "nears large" }, ...item.near.map((near) => el("figure", {}, tellNeighbour(near, item, 96),
          el("figcaption", {}, named(near[1]), el("span", { className: "count" }, near[2].toFixed(2)))))) : null));
    const target = focused && this.dialog.querySelector(`[data-role="${focused}"]:not([disabled])`);
    if (target) target.focus();
    else if (this.dialog.open && !this.dialog.contains(document.activeElement)) this.dialog.querySelector(".close").focus();
  },
  showDecision() { if (this.dialog.open) this.bar?.show(); },
};
viewer.dialog.addEventListener("keydown", (event) => {
  if (event.target.tagName === "SELECT" || event.altKey || event.ctrlKey || event.metaKey) return;
  if (event.key === "ArrowLeft") viewer.move(-1);
  if (event.key === "ArrowRight") viewer.move(1);
});
for (const dialog of document.querySelectorAll("dialog")) {
  dialog.querySelector(".close").onclick = () => dialog.close();
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
}
