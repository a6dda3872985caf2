/* The pictures of one cell */
const mistakes = data.galleries.find((gallery) => gallery.key === "mistakes");
let inCell = null;
function findPictures(label, predicted) {
  const fits = (item) => item.label === label && item.predicted === predicted;
  if (label !== predicted && mistakes) return mistakes.items.filter(fits);
  const found = new Map();
  for (const { items } of data.galleries) for (const item of items) if (fits(item)) found.set(keyOf(item), item);
  return [...found.values()];
}
function openCell(label, predicted, count) {
  const items = findPictures(label, predicted), dialog = byId("cell");
  const what = label === predicted ? ["", named(label), " recognised"] : ["", named(label), " taken for ", named(predicted)];
  const some = items.length < count ? `, ${numberOf(items.length)} in this page` : "";
  byId("cell-title").replaceChildren(...what, `: ${numberOf(count)}${some}`);
  dialog.showModal();
  if (inCell) {
    inCell.observer.disconnect();
    galleries.delete(inCell);
  }
  byId("cell-gallery").replaceChildren();
  inCell = makeGallery(byId("cell-gallery"), items, { decides: mistakes?.decides && label !== predicted, startsOpen: true });
  dialog.scrollTop = 0;
}

/* Confusion matrix */
const matrix = {
  order: "given",
  limit: 20,
  start() {
    const size = data.classes.length;
    this.counts = Array.from({ length: size }, () => new Map());
    this.totals = Array(size).fill(0);
    this.errors = Array(size).fill(0);
    for (const [label, predicted, count] of data.counts) {
      this.counts[label].set(predicted, count);
      this.totals[label] += count;
      if (label !== predicted) for (const each of [label, predicted]) this.errors[each] += count;
    }
    if (size <= MATRIX_WHOLE_UP_TO) this.limit = size;
    const choose = (label, options, current, onchoice) => {
      const select = el("select", { onchange: () => { onchoice(select.value); this.draw(); } },
        ...options.map(([value, text]) => el("option", { value, selected: String(value) === String(current) }, text)));
      byId("matrix-tools").append(el("label", {}, `${label} `, select));
    };
    choose("Sort by", [["given", "given order"], ["errors", "most mistakes"], ["name", "name"]], this.order, (value) => { this.order = value; });
    const limits = [10, 20, 40, 80].filter((limit) => limit < size);
    if (limits.length) {
      choose("Show", [...limits.map((limit) => [limit, `${limit} most confused classes`]), [size, `all ${size} classes`]],
        this.limit, (value) => { this.limit = Number(value); });
    }
    const scroll = byId("matrix");
    scroll.addEventListener("click", (event) => {
      const { label, predicted } = event.target.closest("button")?.dataset ?? {};
      if (label) openCell(Number(label), Number(predicted), this.counts[label].get(Number(predicted)));
    });
    scroll.addEventListener("keydown", (event) => this.move(event));
    scroll.addEventListener("focusin", (event) => this.tell(event.target));
    scroll.addEventListener("pointerover", (event) => this.tell(event.target));
    this.draw();
  },
  draw() {
    const all = data.classes.map((_, number) => number);
    const worst = [...all].sort((a, b) => this.errors[b] - this.errors[a] || a - b);
    const kept = new Set(worst.slice(0, this.limit));
    const base = this.order === "errors" ? worst
      : this.order === "name" ? [...all].sort((a, b) => data.classes[a].localeCompare(data.classes[b])) : all;
    this.shown = base.filter((number) => kept.has(number));
    const isCut = this.shown.length < all.length, others = all.filter((number) => !kept.has(number));
    const sum = (rows, columns) => rows.reduce((total, row) => total + columns.reduce((part, column) => part + (this.counts[row].get(column) ?? 0), 0), 0);
    const plain = (count) => el("td", { className: "rest" }, count ? numberOf(count) : "");
    const heading = el("tr", {}, el("td", { className: "corner" }, el("span", {}, "label ↓\nanswer →")),
      ...this.shown.map((number) => el("th", { scope: "col", title: data.classes[number] }, el("span", {}, data.classes[number]))),
      isCut ? el("th", { scope: "col", className: "rest" }, el("span", {}, `${others.length} others`)) : null,
      el("th", { scope: "col", className: "rest" }, el("span", {}, "all")));
    const body = el("tbody");
    for (const label of this.shown) {
      body.append(el("tr", {}, el("th", { scope: "row", title: data.classes[label] }, el("span", {}, data.classes[label])),
        ...this.shown.map((predicted) => this.makeCell(label, predicted)),
        isCut ? plain(sum([label], others)) : null, plain(this.totals[label])));
    }
    if (isCut) {
      body.append(el("tr", {}, el("th", { scope: "row", className: "rest" }, `${others.length} others`),
        ...this.shown.map((number) => plain(sum(others, [number]))), plain(sum(others, others)), plain(sum(others, all))));
    }
    byId("matrix").replaceChildren(el("table", { className: "matrix" },
      el("caption", { className: "hidden" }, "Rows: labels. Columns: answers. Cells: numbers of pictures."), el("thead", {}, heading), body));
    byId("matrix").querySelector("button")?.setAttribute("tabindex", "0");
  },
  makeCell(label, predicted) {
    const count = this.counts[label].get(predicted) ?? 0;
    const cell = el("td");
    if (count) {
      cell.dataset[label === predicted ? "hit" : "miss"] = Math.ceil(9 * Math.sqrt(count / this.totals[label]));
      cell.append(el("button", { type: "button", tabIndex: -1, data: { label, predicted } }, numberOf(count)));
    } else if (label === predicted) cell.dataset.hit = 0;
    return cell;
  },
  tell(target) {
    const { label, predicted } = target.closest?.("button")?.dataset ?? {};
    if (!label) return;
    const count = this.counts[label].get(Number(predicted)), share = (100 * count / this.totals[label]).toFixed(1);
    byId("matrix-said").replaceChildren(`${numberOf(count)} of ${numberOf(this.totals[label])} (${share} %): `, named(label),
      ...(label === predicted ? [" recognised"] : [" taken for ", named(predicted)]));
  },
  move(event) {
    const step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    const cell = event.target.closest("td");
    if (!step || !cell) return;
    event.preventDefault();
    const rows = cell.closest("table").rows;
    let [row, column] = [cell.parentNode.rowIndex + step[0], cell.cellIndex + step[1]];
    while (rows[row]?.cells[column] && !rows[row].cells[column].querySelector("button")) [row, column] = [row + step[0], column + step[1]];
    const next = rows[row]?.cells[column]?.querySelector("button");
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
  },
};

/* Tables */
function readNumber(text) {
  const found = text.replaceAll("−", "-").replaceAll(",", "").match(/-?\d+(\.\d+)?(e[-+]?\d+)?/i);
  return found ? Number(found[0]) : -Infinity;
}
for (const table of document.querySelectorAll("table.sortable")) {
  for (const sorter of table.querySelectorAll("thead button")) {
    sorter.onclick = () => {
      const head = sorter.parentNode, isUp = head.ariaSort !== "ascending", column = head.cellIndex;
      for (const other of table.querySelectorAll("thead th")) other.removeAttribute("aria-sort");
      head.ariaSort = isUp ? "ascending" : "descending";
      const compare = head.classList.contains("number")
        ? (a, b) => readNumber(a) - readNumber(b) || 0 : (a, b) => a.localeCompare(b, "en", { numeric: true });
      const rows = [...table.tBodies[0].rows].map((row) => [row.cells[column].textContent, row]);
      rows.sort(([a], [b]) => (isUp ? compare(a, b) : compare(b, a)));
      table.tBodies[0].append(...rows.map(([, row]) => row));
    };
  }
}

/* The rest of the page */
for (const each of document.querySelectorAll(".copy[data-text]")) each.onclick = () => copy(each.dataset.text, each);
for (const each of document.querySelectorAll(".pairs button")) {
  const { true: label, predicted } = each.dataset;
  each.onclick = () => openCell(Number(label), Number(predicted), Number(each.querySelector("b").textContent));
}
const theme = byId("theme");
function setTheme(isDark) {
  theme.ariaPressed = String(isDark);
  document.documentElement.dataset.theme = isDark ? "dark" : "light";
}
theme.ariaPressed = String(matchMedia("(prefers-color-scheme: dark)").matches);
theme.onclick = () => setTheme(theme.ariaPressed !== "true");
const sheet = { items: data.galleries.at(-1).items, showsHeat: false, decides: false };
const thumbs = document.querySelectorAll(".thumb");
function fillThumb(thumb) {
  if (!thumb.firstChild) thumb.append(frame(sheet.items[thumb.dataset.item].picture, 64, ""));
}
const near = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) if (isIntersecting) { fillThumb(target); near.unobserve(target); }
}, { rootMargin: "300px" });
for (const thumb of thumbs) {
  near.observe(thumb);
  thumb.onclick = () => viewer.open(sheet, Number(thumb.dataset.item));
}
byId("sheet-more")?.addEventListener("click", (event) => {
  const isCut = document.querySelector(".sheet").classList.toggle("cut");
  event.target.ariaExpanded = String(!isCut);
  event.target.textContent = isCut ? `Show all ${document.querySelectorAll(".sheet figure").length} classes` : "Show fewer classes";
});
if (byId("matrix")) matrix.start();
for (const root of document.querySelectorAll("[data-gallery]")) {
  const { items, decides } = data.galleries[root.dataset.gallery];
  makeGallery(root, items, { decides });
}
addEventListener("beforeprint", () => {
  for (const thumb of thumbs) fillThumb(thumb);
  for (const each of document.querySelectorAll("details:not([open])")) { each.open = true; each.dataset.printed = ""; }
  for (const gallery of galleries) gallery.print();
});
addEventListener("afterprint", () => {
  for (const each of document.querySelectorAll("details[data-printed]")) { each.open = false; delete each.dataset.printed; }
  for (const gallery of galleries) gallery.layout();
});
