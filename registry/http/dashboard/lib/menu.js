// A button with a list of further deeds. The arrows move in it, Esc closes it, and the focus goes back to the button.
//
//   html`<${Menu} label="More for this queue" items=${[{text: "Purge…", danger: true, onClick: () => …}]} />`
//
// Entries that are null or false are left out; without any, nothing is drawn.

import { Icon } from "./icons.js";
import { classes } from "./parts.js";
import { html, useEffect, useRef, useState } from "./preact.js";

export function Menu({ label, items }) {
  const [isOpen, setOpen] = useState(false);
  const root = useRef();
  const shown = items.filter(Boolean);
  useEffect(() => {
    if (!isOpen) return undefined;
    root.current.querySelector('[role="menuitem"]')?.focus();
    const leave = (event) => !root.current.contains(event.target) && setOpen(false);
    addEventListener("pointerdown", leave);
    return () => removeEventListener("pointerdown", leave);
  }, [isOpen]);
  if (!shown.length) return null;
  const close = () => {
    setOpen(false);
    root.current.querySelector("button").focus();
  };
  const onKeyDown = (event) => {
    if (!isOpen) return;
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      const entries = [...root.current.querySelectorAll('[role="menuitem"]')];
      entries[(entries.indexOf(document.activeElement) + step + entries.length) % entries.length].focus();
    } else if (event.key === "Escape") close();
    else if (event.key === "Tab") {
      setOpen(false);
      return;
    } else return;
    event.preventDefault();
  };
  const choose = (item) => {
    close();
    item.onClick();
  };
  return html`<div class="menu-root" ref=${root} onKeyDown=${onKeyDown}>
    <button
      type="button"
      class="button square"
      aria-label=${label}
      title=${label}
      aria-haspopup="menu"
      aria-expanded=${isOpen}
      onClick=${() => setOpen(!isOpen)}
    >
      <${Icon} name="more" />
    </button>
    ${isOpen &&
    html`<div class="menu" role="menu" aria-label=${label}>
      ${shown.map(
        (item) => html`<button
          key=${item.text}
          type="button"
          role="menuitem"
          tabindex="-1"
          class=${classes("menu-item", item.danger && "dies")}
          onClick=${() => choose(item)}
        >
          ${item.text}
        </button>`,
      )}
    </div>`}
  </div>`;
}
