// Elements, and how numbers are written in them. Texts are texts, never markup.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB"];

export function element(name, text, attributes = {}) {
  const made = document.createElement(name);
  made.textContent = text;
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Sets a text only if it changes: so it is read out once.
export function tell(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// Fills the body of a table; columns in `numbers` stand to the right.
export function rows(body, all, numbers) {
  body.replaceChildren(
    ...all.map((cells) => {
      const row = element("tr", "");
      row.append(
        ...cells.map((cell, place) => {
          const made = element("td", cell);
          if (numbers.includes(place)) made.className = "number";
          return made;
        }),
      );
      return row;
    }),
  );
}

export function percent(part) {
  return `${(part * 100).toFixed(part < 0.1 ? 1 : 0)} %`;
}

export function bytes(count) {
  let unit = 0;
  while (count >= 1024 && unit < UNITS.length - 1) {
    count /= 1024;
    unit += 1;
  }
  return `${unit && count < 100 ? count.toFixed(1) : Math.round(count)} ${UNITS[unit]}`;
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.ceil(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}
