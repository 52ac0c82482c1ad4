// The table of trials: sorted by a click on a heading, narrowed by words. The page is whole without.
const table = document.querySelector("#trials table");
const body = table.tBodies[0];
const headings = [...table.tHead.rows[0].cells];

// "∞" comes after every number, "-" (not known) after that, and texts by the alphabet.
function key(cell) {
  const text = cell.textContent;
  if (text === "∞") return Infinity;
  const number = Number(text.replace("−", "-"));
  return Number.isNaN(number) ? null : number;
}

function compare(a, b) {
  const [x, y] = [key(a), key(b)];
  if (x !== null && y !== null) return x === y ? 0 : x - y;
  if (x !== null || y !== null) return x !== null ? -1 : 1;
  return a.textContent.localeCompare(b.textContent);
}

function sortBy(heading) {
  const column = headings.indexOf(heading);
  const rising = heading.getAttribute("aria-sort") !== "ascending";
  for (const other of headings) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", rising ? "ascending" : "descending");
  const rows = [...body.rows].sort((a, b) => compare(a.cells[column], b.cells[column]));
  body.append(...(rising ? rows : rows.reverse()));
}

for (const heading of headings) {
  heading.tabIndex = 0;
  heading.addEventListener("click", () => sortBy(heading));
  heading.addEventListener("keydown", (event) => {
    if (event.key === "Enter") sortBy(heading);
  });
}

document.querySelector("#filter").addEventListener("input", (event) => {
  const words = event.target.value.toLowerCase().split(/\s+/);
  for (const row of body.rows) {
    const cells = [...row.cells].map((cell) => cell.textContent.toLowerCase());
    row.hidden = !words.every((word) => cells.some((cell) => cell.startsWith(word)));
  }
});
