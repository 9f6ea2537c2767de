// The chat page at "/": one file without anything from elsewhere, which its policy makes sure of.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import type { ServerResponse } from "node:http";
import { join } from "node:path";

interface Page {
  html: string;
  /** Content-Security-Policy: the page's own script and style, requests to this server, nothing else. */
  policy: string;
}
let page: Page | null = null;

/** Sends the page, which is read at its first use. */
export function sendPage(response: ServerResponse): void {
  page ??= load();
  response.writeHead(200, {
    "content-type": "text/html; charset=utf-8",
    "content-security-policy": page.policy,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
  });
  response.end(page.html);
}

function load(): Page {
  const html = readFileSync(join(__dirname, "page.html"), "utf8");
  const source = (tag: string): string => {
    const text = html.split(`<${tag}>`)[1]?.split(`</${tag}>`)[0] ?? "";
    return `${tag}-src 'sha256-${createHash("sha256").update(text).digest("base64")}'`;
  };
  const own =
    "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
  return { html, policy: `${own}; ${source("script")}; ${source("style")}` };
}
