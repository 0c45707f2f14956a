"use strict";
// Draws the page's charts and tables from the data in it. Charts and their data are those that figures for papers are drawn from.
(async () => {
  const page = JSON.parse(document.getElementById("data").textContent);
  const styles = Object.fromEntries(page.styles.map((style) => [style.method, style]));
  const state = page.state;
  const tables = Object.fromEntries(Object.entries(page.tables).map(([name, packed]) => [name, unpack(packed)]));
  const measures = Object.fromEntries(page.measures.map((measure) => [measure.id, measure]));

  function unpack({ columns, rows }) {
    return rows.map((row) => {
      const record = Object.fromEntries(columns.map((column, i) => [column.name, column.values ? column.values[row[i]] : row[i]]));
      if (record.method in styles) record.title = styles[record.method].title;
      return record;
    });
  }

  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.includes("-") || name === "role" || name === "class" || name === "scope" || name === "for") made.setAttribute(name, value);
      else made[name] = value;
    }
    made.append(...children);
    return made;
  }

  // Numbers as people read them
  const fixed = (value) => (value === null || value === undefined ? "\u221e" : value.toFixed(3));
  const signed = (value) => (value === null ? "\u221e" : (value < -0.0005 ? "\u2212" : "+") + Math.abs(value).toFixed(3));
  const percent = (share) => `${(100 * share).toFixed(1)}%`;
  function tokens(count) {
    if (count === 0) return "no CT";
    for (const [size, letter] of [[1e9, "B"], [1e6, "M"], [1e3, "k"]]) if (count >= size) return `${+(count / size).toPrecision(6)}${letter}`;
    return String(count);
  }

  // Charts
  const chosen = (row, column, wanted) => (Array.isArray(wanted) ? wanted.includes(row[column]) : row[column] === wanted || (column === "tokens" && row[column] === 0));

  function data(chart) {
    return Object.fromEntries(Object.entries(chart.tables).map(([name, filters]) => {
      const kept = Object.entries(filters);
      return [name, tables[name].filter((row) => kept.every(([column, key]) => chosen(row, column, state[key])))];
    }));
  }

  async function draw(chart) {
    const place = document.getElementById(`chart-${chart.name}`);
    if (!place) return;
    const datasets = data(chart);
    const params = Object.entries(chart.params).map(([name, key]) => ({ name, value: state[key] }));
    const spec = { ...chart.spec, datasets, ...(params.length ? { params } : {}) };
    await vegaEmbed(place, spec, { actions: false, renderer: "svg", config: page.config, tooltip: { theme: "custom" } });
    place.setAttribute("role", "img");
    place.querySelector("svg").setAttribute("aria-hidden", "true"); // the label has the numbers, without every tick of an axis
    place.setAttribute("aria-label", chart.label || describe(chart.name, datasets));
    const table = place.closest("figure").querySelector("details.data");
    if (table && table.open) fill(table, chart);
  }

  function describe(name, datasets) {
    const rows = Object.values(datasets).find((values) => values.length) || [];
    const say = {
      curves: () => {
        const ends = new Map();
        for (const row of datasets.scores) ends.set(row.title, [...(ends.get(row.title) || []), row]);
        const lines = [...ends].map(([title, points]) => {
          const [first, last] = [points[0], points[points.length - 1]];
          return points.length > 1 ? `${title} from ${fixed(first.value)} at ${tokens(first.tokens)} to ${fixed(last.value)} at ${tokens(last.tokens)}` : `${title} ${fixed(first.value)}`;
        });
        return `Lines of ${measures[state.measure].name} in ${measures[state.measure].language} against CT tokens. ${lines.join("; ")}.`;
      },
      tradeoff: () => `Paths of bits per byte and mean accuracy as tokens grow. ${datasets.tradeoff.map((row) => `${row.title} at ${tokens(row.tokens)}: ${fixed(row.bits)} bits, accuracy ${fixed(row.accuracy)}`).join("; ")}.`,
      price: () => `Lines of score against cost. ${rows.map((row) => `${row.title} at ${tokens(row.tokens)}: cost ${+row[state.cost].toPrecision(3)}, score ${fixed(row[state.scored])}`).join("; ")}.`,
      frontiers: () => `Lines of bits per byte and mean accuracy at ${tokens(state.frontier_budget)} CT tokens, a point per knob value. ${datasets.frontiers.filter((row) => row.kind !== "seed").map((row) => `${row.title}, ${row.knob}: ${fixed(row.bits)} bits, accuracy ${fixed(row.accuracy)}`).join("; ")}.`,
      gap: () => `The gap in accuracy at equal bits per byte. ${datasets.totals.map((row) => `Mean ${signed(row.value)}, 95% CI ${signed(row.low)} to ${signed(row.high)}`).join("; ") || "The two methods share fewer than 0.05 bits per byte at this budget"}.`,
      forest: () => `Gaps in accuracy at equal bits per byte. ${rows.filter((row) => row.family === "all").map((row) => `${row.row}${row.value === null ? "" : `: ${signed(row.value)}, 95% CI ${signed(row.low)} to ${signed(row.high)}`}`).join("; ")}.`,
      heat: () => `Share of the parameters of SFT that ${styles[state.merge]?.title} discards, by part of the model and CT tokens. ${rows.map((row) => `${row.part} at ${tokens(row.tokens)}: ${percent(row[state.quantity])}`).join("; ")}.`,
      slack: () => `Lines against slack. ${rows.map((row) => `slack ${row.slack} at ${tokens(row.tokens)}: ${fixed(row[state.measured])}`).join("; ")}.`,
      predictions: () => `Bars of the share of answers that went to each label of ${state.task}, at ${tokens(state.budget)}. ${rows.map((row) => `${row.title}, ${row.label}: ${percent(row.share)}`).join("; ")}.`,
      training: () => `Lines of bits per byte on dev against tokens. ${rows.map((row) => `${row.stage}, ${row.language}, ${tokens(row.tokens)}: ${fixed(row.bits)}`).join("; ")}.`,
      hours: () => `Hours by kind of stage. ${rows.map((row) => `${row.kind}, ${row.what}: ${row.hours.toFixed(3)}`).join("; ")}.`,
      search: () => {
        const best = new Map(rows.map((row) => [row.title, row]));
        const at = ({ title, best: value }) => rows.find((row) => row.title === title && row.score === value);
        return `Scores on dev by candidate, and the best so far. ${[...best.values()].map((last) => `${last.title}: ${last.trial} candidates, best ${fixed(last.best)} at number ${at(last).trial} (${at(last).settings})`).join("; ")}.`;
      },
      claims: () => `Effects of the claims, divided by their margins. ${rows.map((row) => `${row.row}, ${row.effect}`).join("; ")}.`,
    };
    return `${(say[name] || (() => name))()} A table below has the data.`;
  }

  // Tables that sort
  function sortable(rows, columns, caption) {
    const head = element("tr"), body = element("tbody");
    const put = (sorted) => body.replaceChildren(...sorted.map((row) => element("tr", {}, ...columns.map((column, i) => cell(row, column, i)))));
    const cell = (row, column, i) => {
      const shown = column.show ? column.show(row) : row[column.name];
      const made = element(i ? "td" : "th", i ? {} : { scope: "row" });
      made.append(shown instanceof Node ? shown : String(shown ?? ""));
      if (column.text) made.classList.add("text");
      const kind = column.kind && column.kind(row);
      if (kind) { made.classList.add(kind); made.title = kind; }
      return made;
    };
    for (const column of columns) {
      const th = element("th", { scope: "col" });
      if (column.text) th.classList.add("text");
      th.append(element("button", { type: "button", onclick: () => {
        const down = th.getAttribute("aria-sort") === "descending" || (column.text && !th.hasAttribute("aria-sort"));
        head.querySelectorAll("th").forEach((other) => other.removeAttribute("aria-sort"));
        th.setAttribute("aria-sort", down ? "ascending" : "descending");
        const of = (row) => (column.value ? column.value(row) : row[column.name]);
        const none = (value) => value === null || value === undefined;
        put([...rows].sort((a, b) => {
          const [x, y] = [of(a), of(b)];
          if (none(x) || none(y)) return none(x) - none(y);
          return (down ? 1 : -1) * (typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y)));
        }));
      } }, column.title));
      head.append(th);
    }
    put(rows);
    const table = element("table", {}, ...(caption ? [element("caption", {}, caption)] : []), element("thead", {}, head), body);
    return element("div", { class: "scroll", tabIndex: 0, role: "region", "aria-label": caption || "table" }, table);
  }

  function fill(details, chart) {
    const every = Object.values(data(chart)).flat(), known = Object.keys(tables[Object.keys(chart.tables)[0]][0] || {});
    const rows = every.filter((row) => known.every((name) => name in row)); // not those of levels and windows
    const names = known.filter((name) => !["method", "measure", "order", "by", "group"].includes(name) && rows.some((row) => typeof row[name] !== "string" || row[name]));
    names.sort((a, b) => (b === "title") - (a === "title"));
    const title = { title: "method", tokens: "CT tokens", bits: "bits per byte", lost_top: "share lost of SFT's top 5%", lost: "share lost of SFT", trimmed: "share trimmed of SFT", spread: "range over seeds", row: "claim or pair", low: "95% CI from", high: "95% CI to", time: "time beyond the English SFT", time_all: "time with the English SFT", trained: "tokens trained beyond the English SFT", trained_all: "tokens trained with the English SFT", low_holm: "Holm from", high_holm: "Holm to", mde: "MDE", family: "task", what: "time", trial: "candidate", score: "score on dev", best: "best so far" };
    const columns = names.map((name) => ({
      name, title: title[name] || name, text: rows.some((row) => typeof row[name] === "string"),
      show: (row) => (name === "tokens" ? tokens(row[name]) : typeof row[name] === "number" && !Number.isInteger(row[name]) ? row[name].toFixed(3) : row[name]),
    }));
    details.querySelector("div")?.remove();
    details.append(sortable(rows, columns, details.dataset.caption));
  }

  function byBudget(place, rows, columnOf, caption) {
    const budgets = [...new Set(rows.map((row) => row.tokens))].sort((a, b) => a - b);
    const methods = page.styles.map((style) => style.method).filter((method) => rows.some((row) => row.method === method));
    const lines = methods.map((method) => ({ method, ...Object.fromEntries(rows.filter((row) => row.method === method).map((row) => [row.tokens, row])) }));
    const columns = [
      { title: "method", text: true, value: (line) => styles[line.method].title, show: (line) => styles[line.method].title },
      ...budgets.map((budget) => ({ title: tokens(budget), value: (line) => line[budget]?.value ?? null, ...columnOf(budget, rows.filter((row) => row.tokens === budget)) })),
    ];
    place.replaceChildren(sortable(lines, columns, caption));
  }

  function results() {
    const place = document.getElementById("results-table"), measure = measures[state.measure];
    const levels = tables.levels.filter((row) => row.measure === measure.id).map((row) => `${row.level} ${fixed(row.value)}`);
    const caption = `${measure.language}: ${measure.name} by CT tokens${measure.lower ? " (lower is better)" : ""}, with 95% CIs${levels.length ? `; ${levels.join(", ")}` : ""}`;
    const column = (budget, rows) => {
      const values = rows.map((row) => +row.value.toFixed(3)), best = measure.lower ? Math.min(...values) : Math.max(...values);
      return { show: (line) => line[budget] ? pair(fixed(line[budget].value), `${fixed(line[budget].low)} to ${fixed(line[budget].high)}`, values.length > 1 && +line[budget].value.toFixed(3) === best) : "" };
    };
    const of = (name) => tables[name].filter((row) => row.measure === measure.id);
    byBudget(place, of("scores"), column, caption);
    const untuned = document.getElementById("untuned-table");
    if (untuned) byBudget(untuned, of("untuned"), column, `${caption}; without tuning`);
  }

  function pair(value, small, bold) {
    const made = document.createDocumentFragment();
    made.append(bold ? element("strong", {}, value) : value, element("small", {}, small));
    return made;
  }

  function differences() {
    const place = document.getElementById("differences-table");
    if (!place) return;
    const mark = { better: "\u25b2 ", worse: "\u25bc ", equivalent: "= " };
    const rows = tables.differences.filter((row) => row.baseline === state.baseline && row.kind === state.kind);
    byBudget(place, rows, (budget) => ({
      kind: (line) => line[budget]?.verdict,
      show: (line) => { const d = line[budget]; return d ? pair((mark[d.verdict] || "") + signed(d.value), `${signed(d.low)} to ${signed(d.high)}, MDE ${fixed(d.mde)}`) : ""; },
    }), `Method minus ${page.labels[state.baseline] || state.baseline}: ${page.kinds[state.kind]}`);
  }

  // The legend: families and methods, in every place that has one
  const paths = { "circle": "M4,0A4,4,0,1,1,-4,0A4,4,0,1,1,4,0Z", "square": "M-4,-4H4V4H-4Z", "diamond": "M0,-5L5,0L0,5L-5,0Z", "cross": "M-5,-2H-2V-5H2V-2H5V2H2V5H-2V2H-5Z",
    "triangle-up": "M0,-5L5,4H-5Z", "triangle-down": "M0,5L5,-4H-5Z", "triangle-left": "M-5,0L4,-5V5Z", "triangle-right": "M5,0L-4,-5V5Z" };
  function swatch(style) {
    const dash = style.dash[1] ? ` stroke-dasharray="${style.dash.join(" ")}"` : "", color = page.colours[style.color] || style.color;
    const holder = element("span");
    holder.innerHTML = `<svg viewBox="-14 -6 28 12" aria-hidden="true"><path d="M-14,0H14" stroke="${color}" stroke-width="2"${dash}/><path d="${paths[style.shape]}" fill="${color}"/></svg>`;
    return holder.firstChild;
  }

  function legend(place) {
    const families = new Map();
    for (const style of page.styles) families.set(style.family, [...(families.get(style.family) || []), style]);
    const choose = (methods) => { state.methods = page.styles.map((style) => style.method).filter((method) => methods.has(method)); update(["methods"]); };
    const flip = (members) => () => {
      const now = new Set(state.methods), on = members.every((style) => now.has(style.method));
      members.forEach((style) => (on ? now.delete(style.method) : now.add(style.method)));
      choose(now);
    };
    const rows = [...families].map(([family, members]) => element("div", { class: "family" },
      element("button", { type: "button", class: "of-family", onclick: flip(members), "data-family": family }, family),
      ...members.map((style) => element("button", { type: "button", onclick: flip([style]), "data-method": style.method }, swatch(style), style.title))));
    const first = [...state.methods];
    place.append(...rows, element("div", { class: "family" },
      element("button", { type: "button", onclick: () => choose(new Set(page.styles.map((style) => style.method))) }, "all"),
      element("button", { type: "button", onclick: () => choose(new Set()) }, "none"),
      element("button", { type: "button", onclick: () => choose(new Set(first)) }, "first selection")));
  }

  function pressed() {
    const on = new Set(state.methods);
    document.querySelectorAll("[data-method]").forEach((button) => button.setAttribute("aria-pressed", on.has(button.dataset.method)));
    document.querySelectorAll("[data-family]").forEach((button) => {
      const members = page.styles.filter((style) => style.family === button.dataset.family).map((style) => on.has(style.method));
      button.setAttribute("aria-pressed", members.every(Boolean) ? "true" : members.some(Boolean) ? "mixed" : "false");
    });
  }

  async function update(changed) {
    document.querySelectorAll("select[data-state]").forEach((select) => { select.value = String(state[select.dataset.state]); });
    pressed();
    const heading = document.getElementById("measured");
    const measure = measures[state.measure];
    if (heading && measure) heading.textContent = `${measure.language}: ${measure.name}${measure.lower ? " (lower is better)" : ""}`;
    if (changed.includes("measure")) results();
    if (changed.includes("baseline") || changed.includes("kind")) differences();
    for (const chart of page.charts) {
      const keys = [...Object.values(chart.tables).flatMap(Object.values), ...Object.values(chart.params)];
      if (keys.some((key) => changed.includes(key))) await draw(chart);
    }
  }

  document.querySelectorAll("select[data-state]").forEach((select) => select.addEventListener("change", () => {
    const key = select.dataset.state;
    state[key] = typeof state[key] === "number" ? Number(select.value) : select.value;
    if (key !== "pair") return update([key]);
    const shown = [...state.methods, ...select.value.split(" - ")]; // a gap is shown with its frontiers
    state.methods = page.styles.map((style) => style.method).filter((method) => shown.includes(method));
    update([key, "methods"]);
  }));
  document.querySelectorAll("fieldset.legend").forEach(legend);
  document.querySelectorAll("details.data").forEach((details) => {
    const chart = page.charts.find((each) => each.name === details.dataset.chart);
    details.addEventListener("toggle", () => { if (details.open && chart) fill(details, chart); });
  });
  addEventListener("beforeprint", () => document.querySelectorAll("details.print").forEach((details) => { details.open = true; }));
  await update([]);

  // What is seen first comes first: the sentence is painted before Vega is unpacked, and the first chart, which needs no table, is drawn
  // before anything further down. The rest is drawn when the browser has nothing better to do. Timeouts: hidden pages paint nothing.
  const painted = () => new Promise((go) => { requestAnimationFrame(() => setTimeout(go)); setTimeout(go, 200); });
  const idle = () => new Promise((go) => (window.requestIdleCallback ? requestIdleCallback(go, { timeout: 200 }) : setTimeout(go)));
  await painted();
  performance.mark("painted");
  const packed = Uint8Array.from(atob(document.getElementById("vega").textContent), (letter) => letter.charCodeAt(0));
  const source = await new Response(new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
  document.head.append(element("script", { textContent: source }));
  for (const [number, chart] of page.charts.entries()) { // in the order of the page
    if (number) await idle();
    await draw(chart);
    performance.mark(`chart ${chart.name}`);
  }
  await idle();
  if (page.measures.length) results();
  differences();
  performance.mark("drawn");
  document.documentElement.dataset.drawn = "all";
})().catch((error) => { document.documentElement.dataset.failed = String(error); console.error(error); });
