"use strict";
// Draws the figures of the page from its data, and lets its table of layers be sorted, searched and filtered.
// Names that a user chose reach the page as text alone: `textContent`, and labels drawn on a canvas.
(() => {
  const runs = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);
  const LIGHT = { ink: "#1b2330", soft: "#5b6675", rule: "#d4dbe4", accent: "#2563a8", warm: "#b45f06", good: "#237a47", page: "#ffffff" };
  let charts = [];
  let colours = LIGHT;

  function themeColours() {
    const style = getComputedStyle(document.documentElement);
    return Object.fromEntries(Object.keys(LIGHT).map((name) => [name, style.getPropertyValue(`--${name}`).trim()]));
  }

  function number(value) {
    if (value === null || value === undefined) return "–";
    const text = Math.abs(value) >= 1e5 ? value.toExponential(3) : Number(value.toPrecision(4)).toString();
    return text.replace("-", "−");
  }

  // On an axis of decades only 1, 2 and 5 have room for their text.
  function tickText(value, isLog) {
    return !isLog || "125".includes(value.toExponential()[0]) ? number(value) : "";
  }

  function axis(label, more = {}) {
    const isLog = more.type === "logarithmic";
    return {
      title: { display: Boolean(label), text: label, color: colours.soft },
      ticks: { color: colours.soft, maxTicksLimit: 9, maxRotation: 0, includeBounds: false, autoSkipPadding: 14, callback: (value) => tickText(Number(value), isLog) },
      grid: { color: colours.rule, lineWidth: 0.6 },
      border: { color: colours.rule },
      ...more,
    };
  }

  // An axis of whole numbers, whose lines stand at whole numbers too.
  function countAxis(label) {
    const scale = axis(label, { type: "linear" });
    scale.ticks.precision = 0;
    return scale;
  }

  function draw(canvas, datasets, scales, options = {}) {
    charts.push(new Chart(canvas, {
      data: { datasets },
      options: {
        animation: false, responsive: true, maintainAspectRatio: false, parsing: false,
        interaction: { mode: "nearest", intersect: true },
        scales,
        ...options,
        plugins: {
          legend: {
            display: datasets.length > 1, position: "bottom",
            labels: { color: colours.ink, boxWidth: 12, boxHeight: 8, usePointStyle: true },
          },
          tooltip: { displayColors: false },
          ...options.plugins,
        },
      },
    }));
  }

  // Values over a range of decades; what is not positive has no place there.
  function isWide(values) {
    const positive = values.filter((value) => value > 0);
    return positive.length > 0 && Math.max(...positive) > 20 * Math.min(...positive);
  }

  const finite = (search) => search.trials.filter((trial) => trial.value !== null);

  function assignmentLines(search, trial) {
    const places = trial.schemes.map((place) => (place === null ? "float" : search.schemes[place]));
    if (places.length <= 12) return places.map((scheme, index) => `${search.groups[index]}: ${scheme}`);
    const counts = new Map();
    for (const scheme of places) counts.set(scheme, (counts.get(scheme) || 0) + 1);
    return [...counts].map(([scheme, count]) => `${scheme}: ${count} of ${places.length} groups`);
  }

  function trialLines(search, point) {
    const trial = point.trial;
    if (!trial) return [point.title, number(point.y)];
    const costs = search.kinds.filter((kind) => trial.costs[kind.name] !== null && trial.costs[kind.name] !== undefined)
      .map((kind) => `${kind.label}: ${number(trial.costs[kind.name] / kind.factor)}`);
    const stopped = trial.state === "PRUNED" ? " (stopped early, an estimate)" : "";
    return [
      `trial ${trial.number}, ${trial.source}`, `${search.objective} ${number(trial.value)}${stopped}`,
      `predicted ${number(trial.predicted)}`, ...costs, ...assignmentLines(search, trial),
    ];
  }

  function tooltip(search) {
    return { displayColors: false, callbacks: { title: () => "", label: (item) => trialLines(search, item.raw) } };
  }

  function drawFront() {
    const canvas = byId("front");
    const searched = runs.filter((run) => run.search);
    if (!canvas || !searched.length) return;
    const kindName = byId("front-kind").value;
    const isLog = byId("front-scale").value === "logarithmic";
    const kind = searched[0].search.kinds.find((each) => each.name === kindName);
    const datasets = searched.flatMap((run, index) => frontOf(run, kind, isLog, index, searched.length > 1));
    const scales = {
      x: axis(kind.label, { type: "linear" }),
      y: axis(`measured ${searched[0].search.objective}`, { type: isLog ? "logarithmic" : "linear" }),
    };
    draw(canvas, datasets, scales, {
      onClick: (event, items, chart) => {
        const point = items.length && chart.data.datasets[items[0].datasetIndex].data[items[0].index];
        if (point && point.trial) showTrial(point.trial);
      },
      plugins: { tooltip: tooltip(searched[0].search) },
    });
  }

  // The complete trials that no other beats in both the cost and what was measured, by cost.
  function frontPoints(search, kind, points) {
    const cheapness = kind.at_least ? -1 : 1;
    const goodness = search.maximize ? -1 : 1;
    const complete = points.filter((point) => point.trial.state === "COMPLETE");
    complete.sort((one, other) => cheapness * (one.x - other.x) || goodness * (one.y - other.y));
    let reached = Infinity;
    const front = complete.filter((point) => {
      const isBetter = goodness * point.y < reached;
      reached = isBetter ? goodness * point.y : reached;
      return isBetter;
    });
    return front.sort((one, other) => one.x - other.x);
  }

  function frontOf(run, kind, isLog, index, isOneOfSeveral) {
    const search = run.search;
    const prefix = isOneOfSeveral ? `${run.run}: ` : "";
    const main = index ? colours.warm : colours.accent;
    const place = (trial) => ({ x: trial.costs[kind.name] / kind.factor, y: trial.value, trial });
    const fits = (point) => Number.isFinite(point.x) && (!isLog || point.y > 0);
    const points = (trials) => trials.map(place).filter(fits);
    const all = finite(search);
    const best = all.filter((trial) => trial.number === search.best);
    const datasets = [
      { label: "chosen", type: "scatter", data: points(best), pointStyle: "rectRot", radius: 9, hoverRadius: 11, backgroundColor: colours.good },
      { label: "uniform", type: "scatter", data: points(all.filter((trial) => trial.uniform)), pointStyle: "triangle", radius: 7, hoverRadius: 9, backgroundColor: colours.warm },
      { label: "trials", type: "scatter", data: points(all.filter((trial) => trial.state === "COMPLETE" && !trial.uniform)), radius: 4, hoverRadius: 7, backgroundColor: `${main}b0` },
      { label: "stopped early", type: "scatter", data: points(all.filter((trial) => trial.state === "PRUNED")), radius: 3, hoverRadius: 6, pointStyle: "crossRot", borderColor: colours.soft },
    ];
    datasets.push({ label: "front", type: "line", data: frontPoints(search, kind, points(all)), borderColor: main, borderWidth: 1.4, pointRadius: 0, stepped: kind.at_least ? "after" : "before" });
    const xs = all.map((trial) => trial.costs[kind.name] / kind.factor).filter(Number.isFinite);
    const ends = [Math.min(...xs), Math.max(...xs)];
    const level = (label, y, dash, colour) => y !== null && (!isLog || y > 0) && datasets.push({
      label, type: "line", data: ends.map((x) => ({ x, y, title: label })), borderDash: dash, borderColor: colour, borderWidth: 1.2, pointRadius: 0,
    });
    level("float", search.float.value, [6, 4], colours.soft);
    if (best.length && search.trained !== null) {
      const x = best[0].costs[kind.name] / kind.factor;
      datasets.push({ label: "as deployed, all validation samples", type: "scatter", data: [{ x, y: search.trained, title: "as deployed" }].filter(fits), pointStyle: "star", radius: 9, borderColor: colours.good, borderWidth: 2 });
    }
    for (const budget of run.budgets || []) {
      if (budget.kind !== kind.name) continue;
      const ys = points(all).map((point) => point.y);
      const x = budget.limit / kind.factor;
      datasets.push({ label: budget.text, type: "line", data: [Math.min(...ys), Math.max(...ys)].map((y) => ({ x, y, title: budget.text })), borderDash: [2, 3], borderColor: colours.ink, borderWidth: 1.2, pointRadius: 0 });
    }
    for (const dataset of datasets) {
      dataset.label = prefix + dataset.label;
      dataset.pointStyle = dataset.pointStyle || (dataset.type === "line" ? "line" : "circle");
    }
    return datasets.filter((dataset) => dataset.data.length);
  }

  function drawHistory() {
    const canvas = byId("history");
    if (!canvas || !runs[0].search) return;
    const search = runs[0].search;
    const complete = finite(search).filter((trial) => trial.state === "COMPLETE");
    const better = search.maximize ? Math.max : Math.min;
    let reached = null;
    const best = complete.map((trial) => {
      reached = reached === null ? trial.value : better(reached, trial.value);
      return { x: trial.number, y: reached, title: "best so far" };
    });
    const isLog = isWide(complete.map((trial) => trial.value));
    draw(canvas, [
      { label: "trials", type: "scatter", data: complete.map((trial) => ({ x: trial.number, y: trial.value, trial })), radius: 3.5, hoverRadius: 6, backgroundColor: `${colours.accent}b0`, pointStyle: "circle" },
      { label: "best so far", type: "line", data: best, stepped: true, borderColor: colours.good, borderWidth: 1.6, pointRadius: 0, pointStyle: "line" },
    ], { x: countAxis("trial"), y: axis(search.objective, { type: isLog ? "logarithmic" : "linear" }) },
    { plugins: { tooltip: tooltip(search) } });
  }

  function drawAgreement() {
    const canvas = byId("agreement");
    if (!canvas || !runs[0].search) return;
    const search = runs[0].search;
    const complete = finite(search).filter((trial) => trial.state === "COMPLETE" && trial.predicted !== null);
    const typeOf = (values) => (isWide(values) ? "logarithmic" : "linear");
    const types = { x: typeOf(complete.map((trial) => trial.predicted)), y: typeOf(complete.map((trial) => trial.value)) };
    const fits = (value, type) => type === "linear" || value > 0;
    const data = complete.map((trial) => ({ x: trial.predicted, y: trial.value, trial })).filter((point) => fits(point.x, types.x) && fits(point.y, types.y));
    draw(canvas, [{ label: "trials", type: "scatter", data, radius: 4, hoverRadius: 7, backgroundColor: `${colours.accent}b0` }],
      { x: axis("predicted", { type: types.x }), y: axis("measured", { type: types.y }) }, { plugins: { tooltip: tooltip(search) } });
  }

  function drawTraining() {
    const place = byId("training");
    const training = runs[0].training;
    if (!place || !training) return;
    place.textContent = "";
    for (const [name, values] of Object.entries(training.metrics)) {
      const box = document.createElement("div");
      const title = document.createElement("h3");
      title.textContent = name === training.monitor ? `${name} (chooses the epoch)` : name;
      const figure = document.createElement("div");
      figure.className = "figure low";
      const canvas = document.createElement("canvas");
      figure.append(canvas);
      box.append(title, figure);
      place.append(box);
      const data = training.epochs.map((epoch, index) => ({ x: epoch, y: values[index], title: `epoch ${epoch}` })).filter((point) => point.y !== null);
      const datasets = [{
        label: "quantized", type: "line", data, borderColor: colours.accent, borderWidth: 1.6, pointStyle: "circle",
        pointBackgroundColor: data.map((point) => (point.x === training.best ? colours.good : colours.accent)),
        pointRadius: data.map((point) => (point.x === training.best ? 6 : 3)),
      }];
      const level = training.float[name];
      if (level !== undefined && level !== null && data.length) {
        const ends = [data[0].x, data[data.length - 1].x];
        datasets.push({ label: "float", type: "line", data: ends.map((x) => ({ x, y: level, title: "float" })), borderDash: [6, 4], borderColor: colours.soft, borderWidth: 1.2, pointRadius: 0, pointStyle: "line" });
      }
      draw(canvas, datasets, { x: countAxis("epoch"), y: axis("", { type: "linear" }) }, {
        plugins: { tooltip: { displayColors: false, callbacks: { title: () => "", label: (item) => [item.raw.title, number(item.raw.y)] } } },
      });
    }
  }

  // The map of interactions: a cell for each pair of groups, red where errors add up, blue where they cancel.
  function drawInteractions() {
    const canvas = byId("interactions");
    const map = runs[0].interactions;
    if (!canvas || !map) return;
    const count = map.groups.length;
    const side = Math.max(1, Math.floor(canvas.clientWidth * devicePixelRatio / count)) * count;
    canvas.width = canvas.height = side;
    const context = canvas.getContext("2d");
    const cell = side / count;
    let most = 0;
    map.shares.forEach((row, one) => row.forEach((share, other) => { if (one !== other) most = Math.max(most, Math.abs(share)); }));
    map.shares.forEach((row, one) => row.forEach((share, other) => {
      const part = most ? Math.sqrt(Math.min(1, Math.abs(share) / most)) : 0;
      context.globalAlpha = 1;
      context.fillStyle = one === other ? colours.soft : colours.page;
      context.fillRect(other * cell, one * cell, cell, cell);
      if (one === other) return;
      context.globalAlpha = part;
      context.fillStyle = share > 0 ? "#c0392b" : "#2471c9";
      context.fillRect(other * cell, one * cell, cell, cell);
    }));
    context.globalAlpha = 1;
    context.strokeStyle = colours.rule;
    context.strokeRect(0.5, 0.5, side - 1, side - 1);
    canvas.onmousemove = (event) => {
      const place = (offset, length) => Math.min(count - 1, Math.max(0, Math.floor((offset / length) * count)));
      const other = place(event.offsetX, canvas.clientWidth);
      const one = place(event.offsetY, canvas.clientHeight);
      // A name that is written from right to left turns nothing but itself.
      const apart = (name) => `\u2068${name}\u2069`;
      const names = one === other ? apart(map.groups[one]) : `${apart(map.groups[one])} and ${apart(map.groups[other])}`;
      byId("interaction").textContent = `${names}: ${number(map.shares[one][other] * 100)} % of the predicted loss`;
    };
    const limits = map.num_groups > count ? ` The ${count} of ${map.num_groups} groups that take part in most of it.` : "";
    byId("interaction").textContent = `Point at a cell.${limits}`;
  }

  function drawAll(isPrinted) {
    for (const chart of charts) chart.destroy();
    charts = [];
    colours = isPrinted ? LIGHT : themeColours();
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    drawFront();
    drawHistory();
    drawAgreement();
    drawTraining();
    drawInteractions();
  }

  function prepareFront() {
    const select = byId("front-kind");
    const first = runs.find((run) => run.search);
    if (!select || !first) return;
    for (const kind of first.search.kinds) {
      const option = new Option(kind.label, kind.name);
      select.append(option);
    }
    const asked = (first.budgets || []).map((budget) => budget.kind);
    select.value = asked[0] || first.search.front_cost;
    byId("front-scale").value = isWide(finite(first.search).map((trial) => trial.value)) ? "logarithmic" : "linear";
    select.onchange = byId("front-scale").onchange = () => drawAll(false);
  }

  // The table of layers.
  const table = byId("lanes");
  const rows = table ? [...table.tBodies[0].rows] : [];
  const cellOf = (row) => row.cells[3];
  const chosen = rows.map((row) => cellOf(row).innerHTML);

  function showTrial(trial) {
    if (!table) return;
    const search = runs[0].search;
    rows.forEach((row, index) => {
      const place = trial.schemes[index];
      const text = place === null ? "float" : search.schemes[place];
      const width = place === null ? "32" : String(search.bits[place]);
      const mark = document.createElement("span");
      mark.className = "bits";
      mark.textContent = text;
      if (place !== null) mark.dataset.bits = width;
      cellOf(row).replaceChildren(mark);
      cellOf(row).dataset.value = width;
      row.dataset.bitsOf = text;
    });
    paintStrip();
    paintNetwork();
    const button = byId("lane-reset");
    button.hidden = false;
    button.textContent = `trial ${trial.number} is shown: back to the chosen one`;
    filterLanes();
  }

  function paintStrip() {
    const cells = byId("strip").children;
    const weights = rows.filter((row) => row.dataset.kind === "weight");
    weights.forEach((row, index) => {
      cells[index].dataset.bits = row.dataset.bitsOf === "float" ? "" : cellOf(row).dataset.value;
      cells[index].title = `${row.cells[0].textContent}: ${row.dataset.bitsOf}`;
    });
  }

  // The graph of the network shows what the lanes show; its nodes lead to them.
  function paintNetwork() {
    for (const node of document.querySelectorAll(".node[data-lane]")) {
      const cell = cellOf(rows[Number(node.dataset.lane)]);
      const isFloat = rows[Number(node.dataset.lane)].dataset.bitsOf === "float";
      node.querySelector("i").dataset.bits = isFloat ? "" : cell.dataset.value;
      const mark = node.querySelector(".bits");
      if (!mark) continue;
      mark.textContent = rows[Number(node.dataset.lane)].dataset.bitsOf;
      mark.dataset.bits = isFloat ? "" : cell.dataset.value;
    }
  }

  function prepareNetwork() {
    for (const node of document.querySelectorAll(".node[data-lane]")) {
      node.onclick = () => {
        byId("lane-search").value = rows[Number(node.dataset.lane)].cells[0].textContent;
        filterLanes();
        byId("lane-search").scrollIntoView({ block: "center" });
      };
    }
  }

  function filterLanes() {
    const text = byId("lane-search").value.toLowerCase();
    const kind = byId("lane-kind").value;
    const scheme = byId("lane-bits").value;
    let count = 0;
    for (const row of rows) {
      const fits = row.cells[0].textContent.toLowerCase().includes(text) && (!kind || row.dataset.kind === kind) && (!scheme || row.dataset.bitsOf === scheme);
      row.hidden = !fits;
      count += fits ? 1 : 0;
    }
    byId("lane-count").textContent = `${count} of ${rows.length}`;
  }

  function sortLanes(column) {
    const header = table.tHead.rows[0].cells[column];
    const isDown = header.getAttribute("aria-sort") !== "descending";
    for (const cell of table.tHead.rows[0].cells) cell.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", isDown ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[column];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
    };
    const compare = (one, other) => (typeof key(one) === "number" ? key(one) - key(other) : key(one).localeCompare(key(other), undefined, { numeric: true }));
    const sorted = [...rows].sort((one, other) => (isDown ? compare(other, one) : compare(one, other)));
    table.tBodies[0].append(...sorted);
  }

  function prepareLanes() {
    if (!table) return;
    [...table.tHead.rows[0].cells].forEach((cell, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = cell.textContent;
      button.onclick = () => sortLanes(column);
      cell.replaceChildren(button);
    });
    const schemes = [...new Set(rows.map((row) => row.dataset.bitsOf))].sort((one, other) => one.localeCompare(other, undefined, { numeric: true }));
    for (const scheme of schemes) byId("lane-bits").append(new Option(scheme, scheme));
    for (const id of ["lane-search", "lane-kind", "lane-bits"]) byId(id).oninput = filterLanes;
    const original = rows.map((row) => row.dataset.bitsOf);
    const widths = rows.map((row) => cellOf(row).dataset.value);
    byId("lane-reset").onclick = () => {
      rows.forEach((row, index) => {
        cellOf(row).innerHTML = chosen[index];
        row.dataset.bitsOf = original[index];
        cellOf(row).dataset.value = widths[index];
      });
      paintStrip();
      paintNetwork();
      byId("lane-reset").hidden = true;
      filterLanes();
    };
    filterLanes();
  }

  prepareFront();
  prepareLanes();
  prepareNetwork();
  drawAll(false);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => drawAll(false));
  addEventListener("beforeprint", () => {
    for (const each of document.querySelectorAll("details")) each.open = true;
    drawAll(true);
  });
  addEventListener("afterprint", () => drawAll(false));
  document.documentElement.dataset.drawn = String(charts.length);
})();
