// Sortable tables, completions to browse, contents, values under the pointer. Without this the page
// is whole, but for the completions beyond the first.
"use strict";
(() => {
  // Tables: a click or Enter on a head sorts by it, a second one turns the order round.
  const number = (text) => {
    const found = text.replace(/[,\u202f\u00a0](?=\d{3})/g, "").match(/^[^\d+\-\u2212.]{0,2}([+\-\u2212]?\d*\.?\d+(?:e[+-]?\d+)?)/i);
    return found ? parseFloat(found[1].replace("\u2212", "-")) : NaN;
  };
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.textContent.trim();
    const given = cell.dataset.value;
    return { text, number: given === undefined ? number(text) : parseFloat(given) };
  };
  const sort = (table, column, descending) => {
    const body = table.tBodies[0];
    const rows = [...body.rows].map((row) => ({ row, ...key(row, column) }));
    const numeric = column > 0 && rows.some((r) => !isNaN(r.number)) || rows.every((r) => !isNaN(r.number));
    const sign = descending ? -1 : 1;
    rows.sort((a, b) => {
      if (!numeric) return sign * a.text.localeCompare(b.text, "en", { numeric: true });
      // What has no number stays last, whatever the order.
      if (isNaN(a.number) || isNaN(b.number)) return isNaN(a.number) - isNaN(b.number);
      return sign * (a.number - b.number);
    });
    body.append(...rows.map((r) => r.row));
    [...table.tHead.rows[0].cells].forEach((head, place) => {
      if (place === column) head.setAttribute("aria-sort", descending ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    const select = document.createElement("select");
    select.append(new Option("the order of the page", ""));
    const original = [...table.tBodies[0].rows];
    heads.forEach((head, column) => {
      const name = head.textContent.trim();
      if (!name) return;
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      button.addEventListener("click", () => sort(table, column, head.getAttribute("aria-sort") === "ascending"));
      head.append(button);
      select.append(new Option(name + ", rising", `${column} up`), new Option(name + ", falling", `${column} down`));
    });
    select.addEventListener("change", () => {
      const [column, way] = select.value.split(" ");
      if (way) return sort(table, Number(column), way === "down");
      heads.forEach((head) => head.removeAttribute("aria-sort"));
      table.tBodies[0].append(...original);
    });
    // On a phone the heads are not seen.
    const label = document.createElement("label");
    label.className = "sort-by";
    label.append("Sorted by ", select);
    table.parentElement.prepend(label);
  }

  // On a phone a row of many cells begins with four of them, and unfolds.
  if (matchMedia("(max-width: 44rem)").matches) {
    for (const table of document.querySelectorAll("table")) {
      const rows = [...table.tBodies[0].rows];
      if (rows.length < 5 || rows[0].cells.length < 7) continue;
      for (const row of rows) {
        const button = document.createElement("button");
        button.type = "button";
        button.className = "unfold";
        button.append(...row.cells[0].childNodes);
        button.setAttribute("aria-expanded", "false");
        button.addEventListener("click", () => button.setAttribute("aria-expanded", String(!row.classList.toggle("brief"))));
        row.cells[0].append(button);
        row.classList.add("brief");
      }
    }
  }

  // Completions: one problem at a time, of all, or of those that a choice leaves.
  const made = (name, text, className = "") => {
    const element = document.createElement(name);
    element.textContent = text;
    if (className) element.className = className;
    return element;
  };
  const right = (column) => /(^|: )right, \d|(^|: )right$/.test(column[2][0][1]);
  for (const box of document.querySelectorAll(".browse")) {
    const data = box.querySelector("script");
    if (!data) continue;
    const problems = JSON.parse(data.textContent);
    const place = box.querySelector(".shown");
    const heading = (name, series, text, gold) => {
      const found = made(name, "");
      if (series !== null) found.append(made("span", "", `swatch series-${series % 6}`));
      found.append(text);
      if (gold) found.append(" ", made("span", `Answer: ${gold}`, "note"));
      return found;
    };
    const names = [...new Set(problems.flatMap((problem) => problem[2].map((column) => column[0])))];
    const choices = [["all problems", () => true]];
    if (names.length > 1) choices.push(["where verdicts differ", (p) => new Set(p[2].map(right)).size > 1]);
    for (const name of names) choices.push([`not right: ${name}`, (p) => p[2].some((c) => c[0] === name && !right(c))]);
    const pager = made("div", "", "pager");
    const [before, after] = [made("button", "Previous"), made("button", "Next")];
    const at = document.createElement("input");
    at.type = "number";
    at.min = "1";
    const label = made("label", "Problem ");
    const count = made("span", "");
    label.append(at, " ", count);
    const select = document.createElement("select");
    select.setAttribute("aria-label", "Which problems");
    choices.forEach(([name], number) => select.append(new Option(name, number)));
    let found = problems;
    const show = (number) => {
      const last = Math.max(1, found.length);
      const n = Math.min(Math.max(1, number || 1), last);
      at.value = n;
      at.max = last;
      count.textContent = `of ${found.length}`;
      before.disabled = n <= 1;
      after.disabled = n >= last;
      if (!found.length) return place.replaceChildren(made("p", "No problem is like this.", "note"));
      const [title, gold, columns] = found[n - 1];
      const pair = made("div", "", "pair");
      for (const [name, series, samples] of columns) {
        const column = made("div", "");
        column.append(heading("h4", series, name));
        for (const [text, about] of samples) {
          const sample = made("article", "", "sample");
          const words = made("pre", text.length > 1500 ? `${text.slice(0, 1500)} \u2026` : text);
          words.dir = "auto";
          sample.append(words, made("footer", about));
          column.append(sample);
        }
        pair.append(column);
      }
      place.replaceChildren(heading("h3", null, title, gold), pair);
    };
    before.addEventListener("click", () => show(Number(at.value) - 1));
    after.addEventListener("click", () => show(Number(at.value) + 1));
    at.addEventListener("change", () => show(Number(at.value)));
    select.addEventListener("change", () => { found = problems.filter(choices[select.value][1]); show(1); });
    pager.append(before, label, after, select);
    box.prepend(pager);
    show(1);
  }

  // Contents: the section that is read is marked.
  const links = new Map([...document.querySelectorAll("nav a")].map((a) => [a.hash.slice(1), a]));
  const bar = document.querySelector("nav ul");
  const mark = () => {
    const past = [...document.querySelectorAll("main > section")].filter((s) => s.getBoundingClientRect().top < 80);
    const now = past.length ? links.get(past[past.length - 1].id) : null;
    for (const link of links.values()) {
      if (link !== now) link.removeAttribute("aria-current");
      else if (!link.hasAttribute("aria-current")) {
        link.setAttribute("aria-current", "true");
        bar.scrollTo({ left: link.offsetLeft - 40 });
      }
    }
  };
  addEventListener("scroll", mark, { passive: true });

  // Figures: marks have a text, named lines are read at the pointer.
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  tip.setAttribute("aria-hidden", "true");
  document.body.append(tip);
  const show = (event, text) => {
    tip.textContent = text;
    tip.hidden = !text;
    if (!text) return;
    const { width, height } = tip.getBoundingClientRect();
    const left = event.clientX + 14 + width > innerWidth ? event.clientX - width - 14 : event.clientX + 14;
    tip.style.left = `${Math.max(4, left)}px`;
    tip.style.top = `${Math.max(4, Math.min(event.clientY + 14, innerHeight - height - 4))}px`;
  };
  for (const title of document.querySelectorAll("figure svg g > title")) {
    title.parentElement.dataset.tip = title.textContent;
    title.remove();
  }
  const scaled = (share, low, high, scale) =>
    scale === "log" ? low * (high / low) ** share : low + share * (high - low);
  const short = (value) => {
    const size = Math.abs(value);
    if (size >= 1000) return Math.round(value).toLocaleString("en");
    return size && size < 0.001 ? value.toExponential(1) : String(parseFloat(value.toPrecision(3)));
  };
  const axes = (group) => {
    const parts = group.dataset.box.split(" ");
    const [x0, x1, y0, y1, left, right, bottom, top] = parts.slice(0, 8).map(Number);
    const lines = [...group.querySelectorAll("[data-line]")].map((line) => {
      const path = line.querySelector("path");
      const places = path ? path.getAttribute("d").match(/-?\d+(?:\.\d+)?(?:e-?\d+)?/g) || [] : [];
      const points = [];
      for (let i = 0; i + 1 < places.length; i += 2) points.push([Number(places[i]), Number(places[i + 1])]);
      return { name: line.dataset.line, points };
    });
    return { x0, x1, y0, y1, left, right, bottom, top, x: parts[8], y: parts[9], lines };
  };
  const height = (points, x) => {
    for (let i = 1; i < points.length; i++) {
      const [[ax, ay], [bx, by]] = [points[i - 1], points[i]];
      if (ax <= x && x <= bx) return bx === ax ? by : ay + (by - ay) * (x - ax) / (bx - ax);
    }
    return null;
  };
  for (const svg of document.querySelectorAll("figure svg")) {
    const boxes = [...svg.querySelectorAll("[data-box]")].map(axes);
    const line = document.createElementNS(svg.namespaceURI, "path");
    line.setAttribute("class", "at");
    const leave = () => { show(null, ""); line.remove(); };
    svg.addEventListener("pointermove", (event) => {
      const mark = event.target.closest("[data-tip]");
      if (mark) { line.remove(); return show(event, mark.dataset.tip); }
      const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
      const box = boxes.find((b) => b.lines.length && at.x >= b.x0 && at.x <= b.x1 && at.y >= b.y1 && at.y <= b.y0);
      if (!box) return leave();
      const texts = [];
      for (const { name, points } of box.lines) {
        const y = height(points, at.x);
        if (y === null) continue;
        texts.push(`${name}: ${short(scaled((box.y0 - y) / (box.y0 - box.y1), box.bottom, box.top, box.y))}`);
      }
      if (!texts.length) return leave();
      line.setAttribute("d", `M${at.x} ${box.y1}V${box.y0}`);
      svg.append(line);
      const x = short(scaled((at.x - box.x0) / (box.x1 - box.x0), box.left, box.right, box.x));
      show(event, [`at ${x}`, ...new Set(texts)].join("\n"));
    });
    svg.addEventListener("pointerleave", leave);
  }
  addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });
})();
