// What the HTML pages of commands are made of: one self-contained file each, in one look.
import { style } from "./page-style.js";

/** A whole document; `body` is HTML, `title` text. */
export function page(title: string, body: string): string {
  return [
    "<!doctype html>",
    '<html lang="en"><head><meta charset="utf-8">',
    '<meta name="viewport" content="width=device-width, initial-scale=1">',
    '<meta name="color-scheme" content="light dark">',
    `<title>${escapeHtml(title)}</title><style>${style}</style></head><body><main>`,
    body,
    "</main></body></html>\n",
  ].join("");
}

export function section(title: string, body: string): string {
  return `<section><h2>${title}</h2>${body}</section>`;
}

/** Cells are HTML. */
export function table(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const head = header.map((cell) => `<th scope="col">${cell}</th>`).join("");
  const body = rows.map((row) => `<tr>${row.map((cell) => `<td>${cell}</td>`).join("")}</tr>`).join("");
  return `<div class="scroll"><table><thead><tr>${head}</tr></thead><tbody>${body}</tbody></table></div>`;
}

export function escapeHtml(text: string): string {
  return text.replace(/[&<>"]/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;" })[c] as string);
}

/** A share with its sign: "+1.25 %". */
export function signedPercent(share: number): string {
  return `${share < 0 ? "−" : "+"}${Math.abs(share * 100).toFixed(2)} %`;
}

/** A number that the page begins with. */
export function tile(value: string, label: string, detail: string): string {
  return `<div class="tile"><strong>${value}</strong><span>${label}</span><small>${detail}</small></div>`;
}
