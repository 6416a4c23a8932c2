// Reads the lines under the pointer; the page is whole without it.
const tip = document.getElementById("tip");
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg");
  if (!svg) continue;
  const { frame, series } = JSON.parse(figure.querySelector("script").textContent);
  const [left, right, low, high] = frame;
  const cross = svg.querySelector(".cross");
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const x = low + ((at - left) / (right - left)) * (high - low);
    let nearest = series[0].x[0];
    for (const line of series)
      for (const v of line.x) if (Math.abs(v - x) < Math.abs(nearest - x)) nearest = v;
    const place = left + ((nearest - low) / (high - low)) * (right - left);
    cross.setAttribute("d", `M${place} 10V${svg.viewBox.baseVal.height - 34}`);
    tip.replaceChildren(document.createTextNode(`at ${+nearest.toPrecision(5)}`));
    for (const line of series.slice(0, 12)) {
      let i = 0;
      line.x.forEach((v, j) => {
        if (Math.abs(v - nearest) < Math.abs(line.x[i] - nearest)) i = j;
      });
      const row = document.createElement("div");
      row.textContent = `${line.y[i]}  ${line.l}`;
      row.style.borderLeft = `3px solid ${line.c}`;
      row.style.paddingLeft = "6px";
      tip.append(row);
    }
    tip.style.display = "block";
    const x0 = event.pageX + 14, width = tip.offsetWidth;
    const over = x0 + width > document.documentElement.clientWidth;
    tip.style.left = `${over ? Math.max(event.pageX - width - 14, 4) : x0}px`;
    tip.style.top = `${event.pageY + 14}px`;
  });
  svg.addEventListener("pointerleave", () => {
    tip.style.display = "none";
    cross.setAttribute("d", "");
  });
}
