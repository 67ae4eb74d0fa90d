"use strict";
(() => {
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const PAGE = 100, CARDS = 60, RESAMPLES = 2000, MANY = 100;

  /* Elements are made of text nodes only, so nothing in the data can become markup. */
  const fill = (node, attributes, children) => {
    for (const [name, value] of Object.entries(attributes)) {
      if (value === null || value === undefined || value === false) continue;
      if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
      else node.setAttribute(name, value === true ? "" : value);
    }
    node.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return node;
  };
  const el = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);
  const svg = (tag, attributes = {}, ...children) =>
    fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
  const short = (value) => (value === null ? "–" : String(parseFloat(Number(value).toPrecision(3))));
  const colour = (index) => `var(--c${index % 8})`;
  const dash = (index, control) => (control ? "2 3" : ["", "7 3", "1 3 5 3"][Math.floor(index / 8) % 3]);

  /* Sorting: every table whose heading cells hold buttons. Missing values come last in both directions. */
  const collator = new Intl.Collator(undefined, { numeric: true });
  const compare = (a, b, kind, sign) => {
    const gone = (value) => value === null || value === "" || value === undefined;
    if (gone(a) || gone(b)) return gone(a) - gone(b);
    return sign * (kind === "number" ? a - b : collator.compare(a, b));
  };
  const turned = (heading) => {
    const direction = heading.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
    for (const other of heading.parentElement.children) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", direction);
    return direction === "ascending" ? 1 : -1;
  };
  const sortRows = (heading) => {
    const sign = turned(heading), column = heading.cellIndex, kind = heading.dataset.kind;
    const body = heading.closest("table").tBodies[0];
    const rows = [...body.rows].map((row) => [row.cells[column].dataset.value, row]);
    rows.sort((a, b) => compare(a[0], b[0], kind, sign));
    body.append(...rows.map((pair) => pair[1]));
  };
  for (const button of document.querySelectorAll("table.sortable:not(.paged) thead button"))
    button.addEventListener("click", () => sortRows(button.closest("th")));

  /* Charts. */
  const W = 560, H = 300, LEFT = 54, BOTTOM = 40, TOP = 12;
  const ticks = (low, high) => {
    const rough = (high - low || 1) / 5, power = 10 ** Math.floor(Math.log10(rough));
    const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough);
    const found = [];
    for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(at);
    return found;
  };
  const decades = (low, high) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high) + 1e-9; power += 1)
      for (const factor of [1, 3]) if (factor * 10 ** power >= low * 0.999 && factor * 10 ** power <= high * 1.001) found.push(factor * 10 ** power);
    return found;
  };
  const frame = (title, x, y, xs, ys, right) => {
    const chart = svg("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
    for (const at of ys) chart.append(
      svg("line", { class: "axis", x1: LEFT, x2: W - right, y1: y(at), y2: y(at) }),
      svg("text", { x: LEFT - 6, y: y(at) + 4, "text-anchor": "end" }, short(at)));
    for (const at of xs) chart.append(
      svg("line", { class: "axis", x1: x(at), x2: x(at), y1: H - BOTTOM, y2: H - BOTTOM + 4 }),
      svg("text", { x: x(at), y: H - BOTTOM + 17, "text-anchor": "middle" }, short(at)));
    return chart;
  };
  const range = (values) => {
    let low = Infinity, high = -Infinity;
    for (const value of values) { if (value < low) low = value; if (value > high) high = value; }
    return [low, high];
  };
  /* A line has x and y; with low and high, each of its places is a point with an interval. */
  const lineChart = (title, labels, lines, log = false) => {
    const scale = log ? (at) => Math.log(Math.max(at, 1)) : (at) => at;
    const [from, to] = range(lines.flatMap((line) => line.x)), [x0, x1] = [scale(from), scale(to)];
    const [y0, y1] = range(lines.flatMap((line) => [...line.y, ...(line.low || []), ...(line.high || [])]));
    const inset = log ? 16 : 0; /* points need room beside the axis */
    const x = (at) => LEFT + inset + (x1 > x0 ? (scale(at) - x0) / (x1 - x0) : 0.5) * (W - LEFT - 10 - 2 * inset);
    const y = (at) => H - BOTTOM - ((at - y0) / (y1 - y0 || 1)) * (H - BOTTOM - TOP);
    const places = [...new Set(lines.flatMap((line) => (line.low ? line.x.map(Math.round) : [])))].sort((a, b) => a - b);
    const xs = log ? places.filter((at, place) => !place || x(at) - x(places[place - 1]) > 30) : ticks(x0, x1);
    const chart = frame(`${title}: ${lines.map((line) => line.name).join(", ")}`, x, y, xs, ticks(y0, y1), 10);
    const dotted = lines.filter((line) => line.low); /* side by side, so that equal places do not hide each other */
    const beside = (line) => (line.low ? 4 * (dotted.indexOf(line) - (dotted.length - 1) / 2) : 0);
    const drawn = lines.map((line) => svg("g", { transform: `translate(${beside(line)} 0)` }, svg("title", {}, line.name),
      svg("polyline", { points: line.x.map((at, place) => `${x(at).toFixed(1)},${y(line.y[place]).toFixed(1)}`).join(" "),
        style: `stroke:${colour(line.index)}`, "stroke-dasharray": dash(line.index, line.control) }),
      line.low ? line.x.map((at, place) => [
        svg("line", { x1: x(at), x2: x(at), y1: y(line.low[place]), y2: y(line.high[place]), style: `stroke:${colour(line.index)}` }),
        svg("circle", { cx: x(at), cy: y(line.y[place]), r: 4, style: `fill:${colour(line.index)}` })]).flat() : null));
    chart.append(...drawn, svg("text", { x: (W + LEFT) / 2, y: H - 4, "text-anchor": "middle" }, labels[0]),
      svg("text", { x: 12, y: H / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${H / 2})` }, labels[1]));
    /* Selecting a name brings its line out; selecting it again shows all alike. */
    const emphasise = (button, place) => {
      const on = button.getAttribute("aria-pressed") !== "true";
      for (const other of legend.querySelectorAll("button")) other.setAttribute("aria-pressed", other === button && on);
      drawn.forEach((part, index) => part.setAttribute("class", !on ? "" : index === place ? "strong" : "faint"));
    };
    const legend = el("ul", { class: "legend" }, lines.map((line, place) => el("li", {}, el("button", { type: "button", "aria-pressed": "false", onclick: (event) => emphasise(event.currentTarget, place) },
      svg("svg", { viewBox: "0 0 28 10", "aria-hidden": "true" }, line.x.length > 1
        ? svg("line", { x1: 0, x2: 28, y1: 5, y2: 5, style: `stroke:${colour(line.index)};stroke-width:2.4`, "stroke-dasharray": dash(line.index, line.control) })
        : svg("circle", { cx: 14, cy: 5, r: 4, style: `fill:${colour(line.index)}` })), line.name))));
    return el("figure", {}, el("figcaption", {}, title), chart, legend);
  };
  const scatter = (title, metric, points) => {
    const [x0, x1] = range(points.map((point) => Math.max(point.x, 0.8)));
    const [y0, y1] = range(points.flatMap((point) => [point.low, point.high])), right = 120;
    const x = (at) => LEFT + 12 + (Math.log(Math.max(at, 0.8) / x0) / (Math.log(x1 / x0) || 1)) * (W - LEFT - right - 24);
    const y = (at) => H - BOTTOM - ((at - y0) / (y1 - y0 || 1)) * (H - BOTTOM - TOP);
    const chart = frame(`${title}; the leaderboard has the numbers`, x, y, decades(Math.max(x0, 1), x1), ticks(y0, y1), right);
    if (points.some((point) => point.x < 0.8)) chart.append(svg("text", { x: x(0.8), y: H - BOTTOM + 17, "text-anchor": "middle" }, "0"));
    const named = [...points].sort((a, b) => y(a.mean) - y(b.mean));
    const room = Math.min(13, (H - BOTTOM - TOP + 14) / Math.max(1, named.length));
    const places = [];
    named.forEach((point, place) => places.push(Math.max(y(point.mean) + 4, place ? places[place - 1] + room : 0)));
    for (let place = named.length - 1, limit = H - BOTTOM + 8; place >= 0; place -= 1, limit -= room)
      places[place] = Math.min(places[place], limit);
    named.forEach((point, place) => {
      const tint = point.control ? "var(--soft)" : colour(point.index), at = x(point.x), side = W - right + 8;
      chart.append(
        svg("line", { class: "leader", x1: at + 5, y1: y(point.mean), x2: side - 3, y2: places[place] - 4 }),
        svg("line", { x1: at, x2: at, y1: y(point.low), y2: y(point.high), style: `stroke:${tint}` }),
        svg("circle", { cx: at, cy: y(point.mean), r: 4.5, style: point.control ? `fill:var(--paper);stroke:${tint};stroke-width:2` : `fill:${tint}` },
          svg("title", {}, `${point.name}: ${short(point.mean)} [${short(point.low)}, ${short(point.high)}] with ${short(point.x)} passes`)),
        svg("text", { class: point.control ? "" : "name", x: side, y: places[place] }, point.name.length > 19 ? `${point.name.slice(0, 8)}…${point.name.slice(-10)}` : point.name));
    });
    const better = metric.better ? ` (${metric.better} is better)` : "";
    chart.append(svg("text", { x: (W + LEFT - right) / 2, y: H - 4, "text-anchor": "middle" }, "forward + backward passes per map"),
      svg("text", { x: 12, y: H / 2, "text-anchor": "middle", transform: `rotate(-90 12 ${H / 2})` }, metric.name + better));
    return el("figure", {}, el("figcaption", {}, title), chart);
  };
  const line = (curve, explainer) => ({ ...curve, index: explainer, name: data.explainers[explainer].name, control: data.explainers[explainer].control });

  /* One image: maps side by side, one slider for all, pixel sets, curves, scores. */
  let number = 0;
  const stack = (base, overlay, kind) => el("div", { class: kind === "map" ? "stack" : "stack bare" },
    base ? el("img", { class: "base", src: base, alt: "", loading: "lazy" }) : null,
    overlay ? el("img", { class: `${base ? "layer " : ""}${kind}`, src: overlay, alt: "", loading: "lazy" }) : null);
  const folded = (title, ...content) => el("details", {}, el("summary", {}, title), content);
  const figureOf = (detail, part, view) => {
    const heading = el("figcaption", {}, view.explainer, view.control ? [" ", el("span", { class: "tag" }, "control")] : null);
    if (view.error) return el("figure", {}, el("div", { class: "missing" }, view.error), heading);
    const shown = view.map ? stack(detail.base, view.map, "map") : el("div", { class: "missing" }, "no image in this report");
    shown.setAttribute("role", "img");
    shown.setAttribute("aria-label", `map of ${view.explainer} for ${view.claim}`);
    return el("figure", {}, shown, view.scale ? [
      el("div", { class: "ramp", style: `background:linear-gradient(to right,${view.scale.colours.join(",")})` }),
      el("div", { class: "scale" }, el("span", {}, view.scale.ends[0]), el("span", {}, view.scale.ends[1]))] : null,
      heading, el("p", { class: "facts" }, [view.claim === part.target ? "" : view.claim, view.cost].filter(Boolean).join("; ")),
      view.scale && view.scale.remarks ? el("p", { class: "facts" }, view.scale.remarks) : null,
      view.warnings.length ? folded(view.warnings.length === 1 ? "1 note" : `${view.warnings.length} notes`, view.warnings.map((text) => el("p", { class: "facts" }, text))) : null,
      folded("Parameters and command", el("p", { class: "facts" }, view.parameters || "no parameters"), view.command ? el("pre", { tabindex: 0 }, view.command) : null));
  };
  const setsOf = (detail, view) => view.sets.map((one) => el("figure", { class: "set" },
    one.mask ? fill(stack(detail.base, one.mask, "mask"), { role: "img", "aria-label": `${one.role} set of ${view.explainer}` }, []) : null,
    el("figcaption", {}, one.colour ? el("span", { class: "swatch", style: `background:${one.colour}` }) : null, `${view.explainer}: ${one.role} set`),
    el("p", { class: "facts" }, one.claim.replaceAll(" %", "\u00a0%"))));
  const curvesOf = (views) => {
    const metrics = new Map();
    for (const view of views) for (const curve of view.curves || []) {
      if (!metrics.has(curve.metric)) metrics.set(curve.metric, []);
      metrics.get(curve.metric).push(line(curve, view.index));
    }
    return [...metrics].map(([metric, lines]) => lineChart(data.metrics[metric].name, data.metrics[metric].axes, lines));
  };
  const scoresOf = (model, views) => {
    const used = data.metrics.map((_, place) => place).filter((place) => views.some((view) => view.scores && view.scores[place] !== null && view.scores[place] !== undefined));
    if (!used.length) return [];
    const head = el("tr", {}, el("th", { scope: "col", "data-kind": "text" }, el("button", { type: "button" }, "explainer")),
      used.map((place) => el("th", { scope: "col", "data-kind": "number" }, el("button", { type: "button" }, `${data.metrics[place].name} ${data.metrics[place].arrow}`))));
    const rows = views.map((view) => el("tr", {}, el("th", { scope: "row", "data-value": view.explainer }, view.explainer),
      used.map((place) => { const value = (view.scores || [])[place] ?? null; return el("td", { "data-value": value ?? "" }, short(value)); })));
    const table = el("table", { class: "sortable" }, el("caption", {}, `Scores on ${model}`), el("thead", {}, head), el("tbody", {}, rows));
    head.addEventListener("click", (event) => { const th = event.target.closest("th"); if (th) sortRows(th); });
    return [el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": `Scores on ${model}` }, table)];
  };
  const showDetail = (box, detail, wanted) => {
    const id = `opacity-${(number += 1)}`, start = Math.round(100 * data.alpha), output = el("output", { for: id }, `${start} %`);
    const mix = (percent) => {
      box.style.setProperty("--alpha", percent / 100);
      box.style.setProperty("--mix", Math.min(1, percent / 40));
      output.textContent = `${percent} %`;
    };
    const slider = el("input", { type: "range", id, min: 0, max: 100, value: start, oninput: () => mix(slider.value) });
    box.replaceChildren();
    mix(start);
    if (detail.note) box.append(el("p", { class: "note" }, detail.note));
    const pictured = detail.models.some((part) => part.views.some((view) => view.map));
    if (pictured) box.append(el("div", { class: "tools" }, el("label", { for: id }, "Opacity of the maps "), slider, output));
    for (const part of detail.models) {
      const views = part.views.filter((view) => wanted(part, view)), sets = views.filter((view) => view.sets).flatMap((view) => setsOf(detail, view));
      if (!views.length) continue;
      const verdict = part.correct === null ? "" : part.correct ? ", which is correct" : ", which is wrong";
      box.append(el("h3", {}, part.model), el("p", { class: part.correct === false ? "facts wrong" : "facts" }, `predicts ${part.predicted}${verdict}; explained: ${part.target}`));
      const plain = detail.base ? el("figure", {}, fill(stack(detail.base, null, "map"), { role: "img", "aria-label": `the image ${detail.name}` }, []), el("figcaption", {}, "image")) : null;
      if (plain) plain.firstChild.className = "stack bare";
      box.append(el("div", { class: "grid" }, plain, views.map((view) => figureOf(detail, part, view))));
      if (sets.length) box.append(el("h4", {}, "Pixel sets"), el("div", { class: "grid" }, sets));
      const charts = curvesOf(views);
      if (charts.length) box.append(el("h4", {}, "Curves"), el("div", { class: "charts" }, charts));
      box.append(...scoresOf(part.model, views));
    }
  };
  const detailOf = (index) => { const block = find(`image-${index}`); return block ? JSON.parse(block.textContent) : null; };
  for (const box of document.querySelectorAll("section.detail")) {
    const detail = detailOf(box.dataset.image), body = el("div");
    box.append(el("h2", { class: document.querySelector("h1").textContent === detail.name ? "hidden" : null }, detail.name), body);
    showDetail(body, detail, () => true);
  }
  addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("#about details, .detail details")) fold.open = true; });
  if (!find("filters")) return;

  /* Filters. */
  const picked = { model: "", class: "", correct: "", explainers: new Set(data.explainers.keys()) };
  const classes = [...new Set(data.images.flatMap((image) => image.cases.map((item) => item[2])))].sort();
  find("filter-model").append(...data.models.map((name, place) => el("option", { value: place }, name)));
  find("filter-class").append(...classes.map((name) => el("option", { value: name }, name)));
  const box = find("filter-explainers");
  box.append(el("p", {}, el("button", { type: "button", onclick: () => all(true) }, "All"), " ", el("button", { type: "button", onclick: () => all(false) }, "None")),
    ...data.explainers.map((item, place) => el("label", {}, el("input", { type: "checkbox", value: place, checked: true, onchange: update }), ` ${item.name}`, item.control ? " (control)" : "")));
  function all(on) { for (const input of box.querySelectorAll("input")) input.checked = on; update(); }
  const cases = new Map();
  data.images.forEach((image, place) => image.cases.forEach((item) => cases.set(place * data.models.length + item[0], item)));
  const fits = (item) => item && (picked.model === "" || item[0] === Number(picked.model)) && (picked.class === "" || item[2] === picked.class)
    && (picked.correct === "" || item[3] === (picked.correct === "yes"));
  let records = [], images = [], page = 0, cards = CARDS, order = null;

  const random = (seed) => () => { /* mulberry32 */
    seed = (seed + 0x6d2b79f5) | 0;
    let mixed = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
  const interval = (values) => {
    const count = values.length;
    if (count > MANY) { /* where the bootstrap's interval of a mean is the normal one */
      const mean = values.reduce((sum, value) => sum + value, 0) / count;
      const half = (1.96 * Math.sqrt(values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / count)) / Math.sqrt(count);
      return [mean - half, mean + half];
    }
    const next = random(1), means = new Float64Array(RESAMPLES);
    for (let draw = 0; draw < RESAMPLES; draw += 1) {
      let sum = 0;
      for (let place = 0; place < count; place += 1) sum += values[Math.floor(next() * count)];
      means[draw] = sum / count;
    }
    means.sort();
    const at = (part) => { const place = part * (RESAMPLES - 1), low = Math.floor(place); return means[low] + (place - low) * (means[Math.min(low + 1, RESAMPLES - 1)] - means[low]); };
    return [at(0.025), at(0.975)];
  };
  const tables = [...document.querySelectorAll("table.board")].map((table) => ({ table, model: data.models.indexOf(table.dataset.model),
    rows: [...table.tBodies[0].rows].map((row) => ({ row, explainer: data.explainers.findIndex((item) => item.name === row.dataset.explainer),
      cells: [...row.cells].slice(1).map((cell) => ({ cell, content: [...cell.childNodes], value: cell.dataset.value })) })) }));
  /* Filters of class and prediction leave some images: means and intervals are then computed from their records. */
  let narrow = false, groups = new Map();
  const group = () => {
    narrow = picked.class !== "" || picked.correct !== "";
    groups = new Map();
    if (narrow) for (const record of records) {
      const key = record[1] * data.explainers.length + record[2];
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(record);
    }
  };
  const summary = (model, explainer, metric) => {
    const found = groups.get(model * data.explainers.length + explainer) || [];
    const values = found.map((record) => record[3 + metric]).filter((score) => score !== null);
    if (!values.length) return null;
    const [low, high] = interval(values);
    return { mean: values.reduce((sum, score) => sum + score, 0) / values.length, low, high };
  };
  const updateBoards = () => {
    if (find("findings-note")) find("findings-note").hidden = !narrow;
    for (const box of document.querySelectorAll(".pairs")) box.hidden = picked.model !== "" && box.dataset.model !== data.models[picked.model];
    for (const { table, model, rows } of tables) {
      table.parentElement.hidden = picked.model !== "" && model !== Number(picked.model);
      const shown = images.filter((place) => fits(cases.get(place * data.models.length + model))).length;
      table.querySelector(".recount").textContent = narrow ? `(recomputed for ${shown} image${shown === 1 ? "" : "s"})` : "";
      for (const { row, explainer, cells } of rows) {
        row.hidden = !picked.explainers.has(explainer);
        if (row.hidden) continue;
        cells.forEach(({ cell, content, value }, place) => {
          if (!narrow) { cell.replaceChildren(...content); cell.dataset.value = value; return; }
          const found = summary(model, explainer, place);
          cell.dataset.value = found ? found.mean : "";
          if (found) cell.replaceChildren(el("span", { class: "mean" }, short(found.mean)), " ", el("span", { class: "interval" }, `[${short(found.low)}, ${short(found.high)}]`));
          else cell.replaceChildren(el("span", { class: "none" }, "–"));
        });
      }
    }
  };
  const metricBox = find("cost-metric");
  const drawable = data.metrics.map((metric, place) => el("option", { value: place }, metric.name)).filter((_, place) => data.points.some((point) => point.metric === place));
  if (metricBox) { metricBox.append(...drawable); metricBox.addEventListener("change", () => updateCharts()); }
  const pointsOf = (model, metric) => data.points.filter((point) => point.model === model && point.metric === metric && picked.explainers.has(point.explainer))
    .map((point) => (narrow ? { ...point, mean: null, ...summary(model, point.explainer, metric) } : point)).filter((point) => point.mean !== null);
  const budgetChart = (model, place) => {
    const metric = data.metrics[place], points = pointsOf(model, place), curves = new Map(), ends = range(points.filter((point) => !data.explainers[point.explainer].control).map((point) => point.x));
    for (const point of points) {
      const item = data.explainers[point.explainer], name = item.series || item.name;
      if (!curves.has(name)) curves.set(name, { name, control: item.control, index: 0, points: [] });
      curves.get(name).points.push({ ...point, budget: item.budget || "none" });
    }
    if (![...curves.values()].some((curve) => curve.points.length > 1)) return null;
    const names = [...new Set(data.explainers.map((item) => item.series || item.name))];
    const lines = [...curves.values()].map((curve) => {
      const own = curve.points.sort((a, b) => a.x - b.x), column = (key) => own.map((point) => point[key]), index = names.indexOf(curve.name);
      return curve.control ? { ...curve, index, x: ends, y: [own[0].mean, own[0].mean] }
        : { ...curve, index, x: column("x"), y: column("mean"), low: column("low"), high: column("high") };
    });
    const title = `${metric.name} and budget on ${data.models[model]}`, better = metric.better ? ` (${metric.better} is better)` : "";
    const cells = (point) => [el("td", {}, point.budget), ...[point.x, point.mean].map((value) => el("td", { class: "number" }, short(value))), el("td", {}, `[${short(point.low)}, ${short(point.high)}]`)];
    const table = el("table", {}, el("caption", {}, title), el("thead", {}, el("tr", {}, ["explainer", "budget", "passes per map", "mean", "95 % interval"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, lines.flatMap((line) => line.points.map((point) => el("tr", {}, el("th", { scope: "row" }, line.name), cells(point))))));
    const figure = lineChart(title, ["forward + backward passes per map", metric.name + better], lines, true);
    figure.append(folded("Numbers of this chart", el("div", { class: "wide", tabindex: 0, role: "region", "aria-label": `numbers of ${title}` }, table)));
    return figure;
  };
  /* The curves of single images, which stand in the blocks of their details. */
  let known = null;
  const imageCurves = () => {
    known = known || data.images.map((_, place) => (detailOf(place)?.models || []).flatMap((part) => part.views.flatMap((view) => (view.curves || []).map((curve) => ({ ...curve, model: data.models.indexOf(part.model), explainer: view.index })))));
    return known;
  };
  const meanCurve = (curves) => {
    if (!curves.length || curves.some((curve) => curve.x.length !== curves[0].x.length)) return null;
    const mean = (axis) => curves[0][axis].map((_, place) => curves.reduce((sum, curve) => sum + curve[axis][place], 0) / curves.length);
    return { explainer: curves[0].explainer, x: mean("x"), y: mean("y") };
  };
  const inDetail = data.images.every((image) => !image.href);
  const filteredCurves = ({ model, metric, lines }) => {
    const own = images.filter((place) => fits(cases.get(place * data.models.length + model))).flatMap((place) => imageCurves()[place]).filter((curve) => curve.model === model && curve.metric === metric);
    return lines.map((one) => meanCurve(own.filter((curve) => curve.explainer === one.explainer))).filter(Boolean);
  };
  const updateCharts = () => {
    const chosen = data.models.map((_, place) => place).filter((place) => picked.model === "" || place === Number(picked.model));
    if (metricBox) find("cost-charts").replaceChildren(...chosen.map((place) => {
      const metric = data.metrics[metricBox.value], points = pointsOf(place, Number(metricBox.value));
      return points.length ? scatter(`${metric.name} and cost on ${data.models[place]}`, metric, points.map((point) => line(point, point.explainer))) : null;
    }).filter(Boolean));
    if (find("budget-charts")) find("budget-charts").replaceChildren(...chosen.flatMap((place) => data.metrics.map((_, metric) => budgetChart(place, metric))).filter(Boolean));
    if (!find("curve-charts")) return;
    find("curve-note").textContent = !narrow ? "Mean over all images" : inDetail ? "Mean over the images that the filters leave"
      : "Mean over all images, whatever the class and the prediction, because the curves of single images are on their own pages";
    find("curve-charts").replaceChildren(...data.curves.filter((curve) => chosen.includes(curve.model)).map((curve) => {
      const lines = (narrow && inDetail ? filteredCurves(curve) : curve.lines).filter((one) => picked.explainers.has(one.explainer)).map((one) => line(one, one.explainer));
      return lines.length ? lineChart(`${data.metrics[curve.metric].name} on ${data.models[curve.model]}`, data.metrics[curve.metric].axes, lines) : null;
    }).filter(Boolean));
  };
  const updateGallery = () => {
    const card = (place) => {
      const image = data.images[place], judged = image.cases.filter((item) => item[3] !== null), wrong = judged.filter((item) => !item[3]);
      const verdict = !judged.length ? null : wrong.length === 0 ? "correct" : wrong.length === judged.length ? "wrong" : `wrong by ${wrong.map((item) => data.models[item[0]]).join(", ")}`;
      const content = [image.thumb ? el("img", { src: image.thumb, alt: "", loading: image.href ? "lazy" : null }) : el("span", { class: "blank", "aria-hidden": "true" }),
        el("b", {}, image.name), el("span", {}, [...new Set(image.cases.map((item) => item[2]))].join(", ")), verdict ? el("span", {}, verdict) : null];
      return el("li", {}, image.href ? el("a", { class: "card", href: image.href }, content)
        : el("button", { class: "card", type: "button", onclick: () => open(images.indexOf(place)) }, content));
    };
    find("gallery").replaceChildren(...images.slice(0, cards).map(card));
    find("more-images").hidden = images.length <= cards;
  };
  find("more-images").addEventListener("click", () => { cards += CARDS; updateGallery(); });

  /* The table of scores: sorted as a list of records, one page at a time in the document. */
  const columns = [["image", "text"], ["model", "text"], ["explainer", "text"], ...data.metrics.map((metric) => [`${metric.name} ${metric.arrow}`, "number"])];
  const recordTable = find("records");
  recordTable.tHead.append(el("tr", {}, columns.map(([name, kind], place) => el("th", { scope: "col", "data-kind": kind },
    el("button", { type: "button", onclick: (event) => { const th = event.currentTarget.closest("th"); order = [place, kind, turned(th)]; page = 0; updateRecords(); } }, name)))));
  const text = [(record) => data.images[record[0]].name, (record) => data.models[record[1]], (record) => data.explainers[record[2]].name];
  const key = (record, place) => (place < 3 ? text[place](record) : record[place]);
  const updateRecords = () => {
    if (order) {
      const [place, kind, sign] = order, ranks = new Map();
      if (place < 3) [...new Set(records.map((record) => text[place](record)))].sort((a, b) => compare(a, b, "text", 1)).forEach((name, rank) => ranks.set(name, rank));
      records.sort((a, b) => (place < 3 ? sign * (ranks.get(key(a, place)) - ranks.get(key(b, place))) : compare(a[place], b[place], kind, sign)));
    }
    const pages = Math.max(1, Math.ceil(records.length / PAGE));
    page = Math.min(page, pages - 1);
    recordTable.tBodies[0].replaceChildren(...records.slice(page * PAGE, (page + 1) * PAGE).map((record) => el("tr", {},
      el("th", { scope: "row" }, text[0](record)), el("td", {}, text[1](record)), el("td", {}, text[2](record)), record.slice(3).map((value) => el("td", { class: "number" }, short(value))))));
    find("records-caption").textContent = `${records.length} explanations`;
    find("page-status").textContent = `page ${page + 1} of ${pages}`;
    find("previous").disabled = page === 0;
    find("next").disabled = page >= pages - 1;
  };
  find("previous").addEventListener("click", () => { page -= 1; updateRecords(); });
  find("next").addEventListener("click", () => { page += 1; updateRecords(); });

  /* The viewer. */
  const viewer = find("viewer");
  let current = 0;
  const open = (place) => {
    current = place;
    const index = images[place], detail = detailOf(index);
    find("viewer-title").textContent = detail.name;
    find("viewer-previous").disabled = place === 0;
    find("viewer-next").disabled = place >= images.length - 1;
    showDetail(find("viewer-body"), detail, (part, view) => (picked.model === "" || data.models[picked.model] === part.model) && picked.explainers.has(view.index));
    if (!viewer.open) viewer.showModal();
    viewer.scrollTop = 0;
    find("viewer-title").focus();
  };
  const step = (by) => { if (current + by >= 0 && current + by < images.length) open(current + by); };
  find("viewer-previous").addEventListener("click", () => step(-1));
  find("viewer-next").addEventListener("click", () => step(1));
  find("viewer-close").addEventListener("click", () => viewer.close());
  viewer.addEventListener("keydown", (event) => {
    if (event.target.matches("input, select")) return;
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });

  function update() {
    picked.model = find("filter-model").value;
    picked.class = find("filter-class").value;
    picked.correct = find("filter-correct").value;
    picked.explainers = new Set([...box.querySelectorAll("input:checked")].map((input) => Number(input.value)));
    const fitting = new Set();
    for (const [place, item] of cases) if (fits(item)) fitting.add(place);
    records = data.records.filter((record) => picked.explainers.has(record[2]) && fitting.has(record[0] * data.models.length + record[1]));
    images = data.images.map((_, place) => place).filter((place) => data.images[place].cases.some((item) => fits(item)));
    page = 0;
    cards = CARDS;
    find("filter-count").textContent = `(${picked.explainers.size} of ${data.explainers.length})`;
    find("filter-status").textContent = `${images.length} of ${data.images.length} images`;
    group();
    updateBoards();
    updateCharts();
    updateGallery();
    updateRecords();
  }
  const form = find("filters");
  for (const select of form.querySelectorAll("select")) select.addEventListener("change", update);
  form.addEventListener("reset", () => setTimeout(update));
  form.addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", (event) => { if (event.key === "Escape") for (const menu of form.querySelectorAll("details[open]")) { menu.open = false; menu.querySelector("summary").focus(); } });
  update();
})();
