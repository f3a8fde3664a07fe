// The search: ENTRIES (headings of the notebooks, definitions of the files) stands above, in the same file.
const box = document.querySelector("nav input"), list = document.querySelector("#found");
const named = (entry, words) => words.every(w => entry.name.toLowerCase().includes(w));

box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  const fits = e => words.every(w => `${e.page} ${e.name}`.toLowerCase().includes(w) || e.text.includes(w));
  const fit = words.length ? ENTRIES.filter(fits) : [];
  fit.sort((a, b) => named(b, words) - named(a, words));  // what is called so comes first
  list.replaceChildren(...fit.slice(0, 30).map(e => {
    const item = document.createElement("li"), link = document.createElement("a");
    link.href = e.url;
    link.textContent = e.name ? `${e.page} · ${e.name}` : e.page;
    const at = Math.max(0, e.text.indexOf(words[0]));
    item.append(link, " … " + e.text.slice(Math.max(0, at - 50), at + 70) + " …");
    return item;
  }));
});
