"use strict";
(() => {
  const { report, figures, lines } = DATA;
  const byId = (id) => document.getElementById(id);
  const palette = ["#0969da", "#1a7f37", "#bc4c00", "#8250df", "#bf3989", "#9a6700", "#0f766e", "#cf222e", "#57606a", "#00a3bf", "#7d8c00", "#e377c2", "#6f4e37", "#1b3a8a"];
  const rivals = report.rivals.map((r) => r.name);
  const color = (rival) => { const i = rivals.indexOf(rival); return palette[i] || `hsl(${(i * 137.5) % 360} 60% 45%)`; };
  const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const digits = (v) => (v === 0 ? "0" : v < 10 ? v.toPrecision(3) : v.toFixed(v < 100 ? 1 : 0));
  const show = (v, unit) => (unit === "B" ? (v < 1e3 ? v + " B" : v < 1e5 ? digits(v / 1e3) + " kB" : digits(v / 1e6) + " MB") : v < 1 ? digits(v * 1e3) + " ms" : digits(v) + " s");
  const element = (tag, text, parent) => { const e = document.createElement(tag); if (text !== undefined) e.textContent = text; if (parent) parent.append(e); return e; };

  const m = report.machine;
  byId("machine").textContent = `${report.begun} · ${m.cpus} × ${m.cpu} · kernel ${m.kernel} · ${m.file_system}${m.fresh_fs ? ` made for each run in a file on ${m.fresh_fs}` : ""} · ${digits(m.memory_bytes / 1e9)} GB · load ${m.load[0]} · seed ${report.seed}`;
  const list = element("ul", undefined, byId("about"));
  report.rivals.forEach((r) => element("li", `${r.name}: ${r.kind}, ${r.version}`, list));
  report.images.forEach((i) => element("li", `${i.name}: ${i.about}`, list));
  (report.notes || []).forEach((n) => element("li", `Note: ${n}`, list));
  const disturbed = lines.reduce((n, l) => n + l.disturbed, 0);
  if (disturbed) element("p", `${disturbed} of ${lines.reduce((n, l) => n + l.runs, 0)} runs were disturbed by other work on the machine: trust ratios more than seconds.`, document.querySelector("header"));

  const group = byId("group"), image = byId("image");
  [...new Set(lines.map((l) => `${l.mode}, ${l.network}`))].forEach((g) => element("option", g, group));
  const inGroup = () => lines.filter((l) => `${l.mode}, ${l.network}` === group.value && l.runs > 0);
  const name = (l) => l.image || "all images";
  const order = (names) => names.sort((a, b) => report.images.findIndex((i) => i.name === a) - report.images.findIndex((i) => i.name === b));

  let plots = [];
  const base = (width) => ({
    width, height: 260, legend: { show: false },
    axes: [{ stroke: css("--ink"), grid: { stroke: css("--line"), width: 0.5 } }, { stroke: css("--ink"), grid: { stroke: css("--line"), width: 0.5 }, size: 70 }],
  });
  const legend = (card, names) => {
    const l = element("div", undefined, card);
    l.className = "legend";
    names.forEach((n) => { const s = element("span", undefined, l); element("i", undefined, s).style.background = color(n); s.append(n); });
  };
  const card = (parent, title) => { const c = element("div", undefined, parent); c.className = "card"; element("h3", title, c); return c; };

  // bars: one cluster for each image, one bar for each server, a whisker on each
  function bars(figure, parent) {
    const found = inGroup().filter((l) => l.figures[figure.key] && l.figures[figure.key].high > 0);
    if (!found.length) return;
    const images = order([...new Set(found.map(name))]), names = rivals.filter((r) => found.some((l) => l.rival === r));
    const at = (r, i) => found.find((l) => l.rival === r && name(l) === i);
    const c = card(parent, figure.title), box = element("div", undefined, c);
    const width = Math.max(240, c.clientWidth - 34);
    const o = base(width);
    const top = Math.max(...found.map((l) => l.figures[figure.key].high)) * 1.05;
    o.scales = { x: { time: false, range: [-0.5, images.length - 0.5] }, y: { range: [0, top] } };
    Object.assign(o.axes[0], { splits: () => images.map((_, i) => i), values: () => images.map((n) => (width / images.length < 75 && n.length > 8 ? n.slice(0, 7) + "…" : n)), grid: { show: false } });
    o.axes[1].values = (_, v) => v.map((x) => (x === 0 ? "0" : show(x, figure.unit)));
    o.cursor = { show: false };
    o.series = [{}, ...names.map((r) => ({ label: r, stroke: color(r), paths: () => null, points: { show: false } }))];
    o.hooks = { draw: [(u) => {
      const { ctx } = u, ratio = devicePixelRatio, slot = (u.valToPos(1, "x", true) - u.valToPos(0, "x", true)) * 0.8 / names.length;
      ctx.save();
      images.forEach((i, x) => names.forEach((r, k) => {
        const l = at(r, i);
        if (!l) return;
        const f = l.figures[figure.key], left = u.valToPos(x, "x", true) + (k - names.length / 2) * slot, y = (v) => u.valToPos(v, "y", true);
        ctx.fillStyle = color(r);
        ctx.fillRect(left + slot * 0.08, y(f.middle), slot * 0.84, y(0) - y(f.middle));
        if (l.runs < 2) return;
        ctx.strokeStyle = css("--ink");
        ctx.lineWidth = ratio;
        const mid = left + slot / 2, cap = slot * 0.2;
        ctx.beginPath();
        ctx.moveTo(mid, y(f.low)); ctx.lineTo(mid, y(f.high));
        [f.low, f.high].forEach((v) => { ctx.moveTo(mid - cap, y(v)); ctx.lineTo(mid + cap, y(v)); });
        ctx.stroke();
      }));
      ctx.restore();
    }] };
    plots.push(new uPlot(o, [images.map((_, i) => i), ...names.map((r) => images.map((i) => at(r, i)?.figures[figure.key].middle ?? null))], box));
    legend(c, names);
  }

  function series(title, value, unit, parent) {
    const found = inGroup().filter((l) => name(l) === image.value && l.points && l.points.length > 1);
    if (!found.length) return;
    const c = card(parent, title), box = element("div", undefined, c);
    const o = base(Math.max(240, c.clientWidth - 34));
    o.scales = { x: { time: false } };
    o.axes[0].values = (_, v) => v.map((x) => digits(x) + " s");
    o.axes[1].values = (_, v) => v.map((x) => (x === 0 ? "0" : show(x, unit)));
    o.series = [{}, ...found.map((l) => ({ label: l.rival, stroke: color(l.rival), width: 1.5, points: { show: false } }))];
    plots.push(new uPlot(o, uPlot.join(found.map((l) => [l.points.map((p) => p.s), l.points.map((p) => value(p, l.points[0]))])), box));
    legend(c, found.map((l) => l.rival));
  }

  // a timeline: one row for each stage, then one for each layer
  const stageColors = { resolve: palette[5], layers: palette[0], sync: palette[7], mount: palette[1], answer: palette[8], layer: palette[3] };
  function timeline(l, parent) {
    const spans = l.timeline, c = card(parent, `${l.rival}: ${show(l.timeline_seconds, "s")}`), box = element("div", undefined, c);
    const label = (s) => (s.name === "layer" ? `${s.layer.slice(7, 11)} ${show(s.bytes || 0, "B")}` : s.name);
    const o = base(Math.max(240, c.clientWidth - 34));
    o.height = 60 + 18 * spans.length;
    o.cursor = { show: false };
    o.scales = { x: { time: false, range: [0, Math.max(...spans.map((s) => s.end))] }, y: { range: [-spans.length + 0.5, 0.5] } };
    o.axes[0].values = (_, v) => v.map((x) => digits(x) + " s");
    Object.assign(o.axes[1], { size: 120, splits: () => spans.map((_, i) => -i), values: () => spans.map(label), grid: { show: false } });
    o.series = [{}, { paths: () => null, points: { show: false } }];
    o.hooks = { draw: [(u) => {
      const { ctx } = u, row = Math.abs(u.valToPos(1, "y", true) - u.valToPos(0, "y", true));
      ctx.save();
      spans.forEach((s, i) => {
        const left = u.valToPos(s.begin, "x", true);
        ctx.fillStyle = stageColors[s.name] || palette[8];
        ctx.fillRect(left, u.valToPos(-i, "y", true) - row * 0.35, Math.max(devicePixelRatio, u.valToPos(s.end, "x", true) - left), row * 0.7);
      });
      ctx.restore();
    }] };
    const ends = spans.map((s) => s.end).sort((a, b) => a - b);
    plots.push(new uPlot(o, [ends, ends.map(() => null)], box));
    c.dataset.spans = JSON.stringify(spans.map((s) => [s.name, s.begin, s.end]));
  }

  function profile(p, parent) {
    const c = card(parent, `${p.rival}, ${p.image}`);
    if (!p.recording) { element("p", p.error, c); return; }
    const r = p.recording, list = element("dl", undefined, c), mb = (n) => show(n, "B");
    const row = (title, text, key, value) => { element("dt", title, list); const d = element("dd", text, list); d.dataset.key = key; d.dataset.value = value; };
    row("Allocated in total", `${mb(r.allocated_bytes)} (${mb(r.allocated_bytes / p.seconds)}/s)`, "allocated_bytes", r.allocated_bytes);
    row("Calls to allocation functions", `${r.allocations} (${digits(r.allocations / p.seconds)}/s)`, "allocations", r.allocations);
    row("Temporary allocations", `${r.temporary} (${digits(r.temporary / p.seconds)}/s)`, "temporary", r.temporary);
    row("Peak heap", `${mb(r.peak_heap_bytes)}, live ${mb(r.peak_live_bytes)}`, "peak_heap_bytes", r.peak_heap_bytes);
    row("Peak RSS, with the recorder", mb(p.peak_rss_bytes), "peak_rss_bytes", p.peak_rss_bytes);
    const table = element("table", undefined, c), body = element("tbody", undefined, table);
    table.className = "sites";
    (r.peak_sites || []).forEach((s) => { const tr = element("tr", undefined, body); [mb(s.bytes), `× ${s.objects}`, s.place].forEach((x) => element("td", x, tr)); });
  }

  function images() {
    const before = image.value, names = order([...new Set(inGroup().map(name))]);
    image.replaceChildren(...names.map((n) => element("option", n)));
    image.value = names.includes(before) ? before : names[names.length - 1];
  }

  function draw() {
    plots.forEach((p) => p.destroy());
    plots = [];
    byId("charts").replaceChildren();
    byId("series").replaceChildren();
    figures.forEach((f) => bars(f, byId("charts")));
    series("Memory of all processes", (p) => p.rss, "B", byId("series"));
    series("CPU time used", (p, first) => p.cpu - first.cpu, "s", byId("series"));
    const drawn = inGroup().filter((l) => name(l) === image.value && l.timeline);
    byId("stages").hidden = !drawn.length;
    byId("timelines").replaceChildren();
    drawn.forEach((l) => timeline(l, byId("timelines")));
  }

  // the table
  const columns = [
    ["server", (l) => l.rival], ["image", name], ["mode", (l) => l.mode], ["network", (l) => l.network],
    ["runs", (l) => l.runs], ["failed", (l) => l.failed], ["disturbed", (l) => l.disturbed],
    ...figures.map((f) => [f.title, (l) => l.figures[f.key]?.middle ?? 0, f]),
  ];
  let sorted = [-1, 1]; // as they come: servers and images in the report's order
  const heads = element("tr", undefined, byId("table").tHead);
  columns.forEach(([title], i) => { element("th", title, heads).onclick = () => { sorted = [i, sorted[0] === i ? -sorted[1] : 1]; table(); }; });
  function table() {
    const [by, direction] = sorted, want = byId("filter").value.toLowerCase();
    [...heads.children].forEach((h, i) => (i === by ? h.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending") : h.removeAttribute("aria-sort")));
    const rows = lines.filter((l) => `${l.rival} ${name(l)} ${l.mode} ${l.network}`.toLowerCase().includes(want));
    if (by >= 0) rows.sort((a, b) => { const x = columns[by][1](a), y = columns[by][1](b); return direction * (x < y ? -1 : x > y ? 1 : 0); });
    byId("table").tBodies[0].replaceChildren(...rows.map((l) => {
      const row = element("tr");
      columns.forEach(([, value, f]) => {
        const cell = element("td", f ? (!l.runs ? "failed" : l.figures[f.key] ? show(value(l), f.unit) : "unknown") : value(l), row);
        if (f) { cell.dataset.key = f.key; cell.dataset.value = value(l); cell.title = l.runs > 1 && l.figures[f.key] ? `${show(l.figures[f.key].low, f.unit)} to ${show(l.figures[f.key].high, f.unit)}` : ""; }
      });
      row.dataset.cell = [l.rival, l.image, l.mode, l.network].join("|");
      return row;
    }));
  }

  group.onchange = () => { images(); draw(); };
  image.onchange = draw;
  byId("filter").oninput = table;
  let timer;
  addEventListener("resize", () => { clearTimeout(timer); timer = setTimeout(draw, 100); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  // paper: light, narrow, two charts beside each other, and what the machine was
  const paper = (on) => { document.documentElement.classList.toggle("paper", on); document.querySelector("details").open = on; draw(); };
  addEventListener("beforeprint", () => paper(true));
  addEventListener("afterprint", () => paper(false));
  byId("memory").hidden = !report.profiles;
  (report.profiles || []).forEach((p) => profile(p, byId("profiles")));
  images();
  draw();
  table();
  document.documentElement.dataset.plots = plots.length;
})();
