"use strict";
// Draws, of each layer, which bytes of the blob hold what. Names come from the
// image and are hostile: they only ever become text.
const kinds = {
  first: ["fetched first", "--first"], file: ["file", "--file"], chunk: ["part of a file of several chunks", "--chunk"],
  shared: ["several files in one member", "--shared"], meta: ["headers, landmark", "--meta"], toc: ["TOC, tar-split, footer", "--toc"],
};
const size = n => {
  let unit = 0;
  for (; n >= 1000 && unit < 4; unit++) n /= 1000;
  return unit ? `${n.toFixed(1)} ${" kMGT"[unit]}B` : `${n} B`;
};
const share = (n, of) => of ? `${(100 * n / of).toFixed(1)} %` : "–";
const make = (parent, tag, text, name) => {
  const e = parent.appendChild(document.createElement(tag));
  if (text !== undefined) e.textContent = text;
  if (name) e.className = name;
  return e;
};
const table = (parent, heads, rows) => {
  const t = make(make(parent, "div", undefined, "scroll"), "table");
  const head = make(make(t, "thead"), "tr"), body = make(t, "tbody");
  heads.forEach(([name, text]) => make(head, "th", name, text ? "text" : ""));
  for (const row of rows) {
    const r = make(body, "tr");
    row.forEach((cell, i) => {
      const td = make(r, "td", typeof cell === "object" ? undefined : cell, heads[i][1] ? "text" : "");
      if (typeof cell !== "object") td.title = cell;
      else if (cell) td.append(cell);
    });
  }
};

function summary() {
  const s = document.getElementById("summary");
  make(s, "p", `${report.layers.length} layers, ${report.seekable} of them seekable, ${size(report.size_bytes)}. Before a lazy mount is ready it fetches ` +
    `${size(report.prefetch_bytes)} (${share(report.prefetch_bytes, report.size_bytes)}) with ${report.prefetch_files} files.`);
  table(s, [["#"], ["digest", true], ["format", true], ["stored", false], ["files"], ["chunks"], ["fetched first"], ["of it"], ["verified", true]],
    report.layers.map(l => [l.index, l.digest.slice(0, 19), l.format || `ordinary: ${l.ordinary}`, size(l.size_bytes), l.files || "–", l.chunks || "–",
      l.format ? size(l.prefetch_bytes || 0) : "–", l.format ? share(l.prefetch_bytes || 0, l.size_bytes) : "–", l.verify ? (l.verify.ok ? "yes" : l.verify.error) : "not asked"]));
}

const tip = document.getElementById("tip");
const showTip = (event, text) => {
  tip.textContent = text;
  tip.hidden = false;
  tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
};

// map draws a blob as lines of a text, from left to right and from top to bottom.
function map(parent, l) {
  const columns = 1200, rowHeight = 14, gap = 2;
  const rows = Math.max(1, Math.min(32, Math.ceil(l.segments.length / 60)));
  const canvas = make(parent, "canvas");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `map of layer ${l.index}`);
  canvas.width = columns;
  canvas.height = rows * (rowHeight + gap) + gap;
  canvas.style.aspectRatio = `${columns} / ${canvas.height}`;
  const perRow = l.size_bytes / rows;
  const draw = () => {
    const style = getComputedStyle(document.documentElement), g = canvas.getContext("2d");
    const color = Object.fromEntries(Object.entries(kinds).map(([k, [, v]]) => [k, style.getPropertyValue(v)]));
    g.clearRect(0, 0, canvas.width, canvas.height);
    l.segments.forEach(s => {
      for (let row = Math.floor(s.from / perRow); row < rows && row * perRow < s.to; row++) {
        const x = Math.max(0, s.from - row * perRow) / perRow * columns;
        const end = Math.min(perRow, s.to - row * perRow) / perRow * columns;
        const width = end - x;
        g.fillStyle = color[s.kind];
        // A line of the paper's colour parts what is wide enough to be seen apart.
        g.fillRect(x, gap + row * (rowHeight + gap), Math.max(width > 3 ? width - 1 : width, .5), rowHeight);
      }
    });
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  canvas.addEventListener("mouseleave", () => { tip.hidden = true; });
  canvas.addEventListener("mousemove", event => {
    const box = canvas.getBoundingClientRect();
    const row = Math.min(rows - 1, Math.floor((event.clientY - box.top) / box.height * rows));
    const at = (row + (event.clientX - box.left) / box.width) * perRow;
    let low = 0, high = l.segments.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (l.segments[middle].from <= at) low = middle; else high = middle - 1;
    }
    const s = l.segments[low];
    if (!s) return;
    showTip(event, `${s.label}\n${kinds[s.kind][0]}\nbytes ${s.from} to ${s.to}: ${size(s.to - s.from)}` +
      (s.raw ? `, ${size(s.raw)} unpacked` : "") + (s.members > 1 ? `\n${s.members} members` : ""));
  });
}

function layer(l) {
  const section = make(document.getElementById("layers"), "section");
  make(section, "h2", `Layer ${l.index}: ${l.digest}`);
  if (!l.format) {
    make(section, "p", `An ordinary layer, ${size(l.size_bytes)}: ${l.ordinary}.`);
    return;
  }
  make(section, "p", `${l.format}, ${size(l.size_bytes)}; ${l.names} names, ${l.files} files of ${size(l.file_bytes || 0)} in ${l.chunks} chunks. ` +
    `TOC ${l.toc_digest}, ${l.toc_in_manifest ? "which the manifest names" : "which the manifest does not name: nothing vouches for it"}. ` +
    (l.landmark ? `Landmark ${l.landmark}.` : "No landmark."));
  const legend = make(section, "div", undefined, "legend");
  for (const [k, [name, v]] of Object.entries(kinds)) {
    const bytes = l.segments.filter(s => s.kind === k).reduce((n, s) => n + s.to - s.from, 0);
    if (!bytes) continue;
    const item = make(legend, "span");
    make(item, "i").style.background = `var(${v})`;
    item.append(`${name}: ${size(bytes)}`);
  }
  map(section, l);
  make(section, "h3", "What takes the room");
  const most = Math.max(1, ...l.folders.map(f => f.stored));
  table(section, [["directory", true], ["files"], ["unpacked"], ["stored"], ["of the layer"], ["fetched first"], ["", true]], l.folders.map(f => {
    const bar = document.createElement("span");
    const part = (n, name) => { make(bar, "span", undefined, name).style.width = `${10 * n / most}rem`; };
    part(f.first, "bar first");
    part(f.stored - f.first, "bar");
    return [f.name, f.files, size(f.raw), size(f.stored), share(f.stored, l.size_bytes), size(f.first), bar];
  }));
  if (l.prefetch) {
    const details = make(section, "details");
    make(details, "summary", `${l.prefetch_count} files are fetched first` + (l.prefetch_count > l.prefetch.length ? `; the first ${l.prefetch.length} of them` : ""));
    const list = make(details, "ol");
    l.prefetch.forEach(name => make(list, "li", name));
  }
}

summary();
report.layers.forEach(layer);
