// The chat page, driven in a real browser (CHROME_PATH, or Chromium or Chrome where they are usually installed; else skipped):
// streamed answers, the stop button, keys and refusals.
import { existsSync } from "node:fs";
import type { Browser, Page } from "playwright-core";
import { chromium } from "playwright-core";
import { afterAll, beforeAll, describe, expect, it } from "vitest";
import type { TinyModel } from "../helpers/served.js";
import { serve, tinyModel, until } from "../helpers/served.js";

const places = [process.env["CHROME_PATH"], "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const executablePath = places.find((path) => path !== undefined && existsSync(path));

let tiny: TinyModel;
beforeAll(async () => {
  tiny = await tinyModel();
});
afterAll(() => tiny[Symbol.dispose]());

const why = executablePath === undefined ? ": skipped, there is no Chromium" : "";
describe.skipIf(executablePath === undefined)(`the chat page in a browser${why}`, () => {
  let browser: Browser;
  beforeAll(async () => {
    const quiet = ["--disable-gpu", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
    browser = await chromium.launch({ executablePath: executablePath!, args: ["--no-sandbox", ...quiet] });
  });
  afterAll(() => browser.close());

  interface Opened extends AsyncDisposable {
    readonly page: Page;
    /** What the page's script or its policy complained of, but for refusals, which the page itself tells. */
    readonly complaints: string[];
    /** Sends a message, and waits until its answer is complete or refused. */
    say(text: string): Promise<void>;
    texts(selector: string): Promise<string[]>;
  }

  async function open(url: string): Promise<Opened> {
    const page = await browser.newPage();
    const complaints: string[] = [];
    page.on("pageerror", (error) => complaints.push(error.message));
    page.on("console", (line) => {
      if (line.type() === "error" && !/status of 40[01]/.test(line.text())) complaints.push(line.text());
    });
    await page.goto(url);
    return {
      page,
      complaints,
      async say(text) {
        await page.fill("#text", text);
        await page.click("#send");
        await page.waitForSelector("#send:enabled");
      },
      texts: (selector) => page.locator(selector).allTextContents(),
      [Symbol.asyncDispose]: () => page.close(),
    };
  }

  it("streams answers, each with all that was said before, and counts their tokens", async () => {
    await using running = await serve(tiny.model);
    await running.handler.ready;
    await using opened = await open(running.url);
    const { page, texts } = opened;
    await page.waitForSelector("#model option", { state: "attached" });
    expect(await texts("#model option")).toEqual(["tiny"]);
    await page.fill("#temperature", "0");
    await page.fill("#most", "9");
    await page.fill("#instructions", "Be brief.");
    const messages: { role: "system" | "user" | "assistant"; content: string }[] = [
      { role: "system", content: "Be brief." },
    ];
    for (const [turn, content] of ["Hi", "<b>And</b> you?"].entries()) {
      await opened.say(content);
      messages.push({ role: "user", content });
      const request = { model: "tiny", messages, temperature: 0, max_tokens: 9 };
      const { choices, usage } = await running.client.chat.completions.create(request);
      const want = choices[0]!.message.content!;
      expect((await texts("article.assistant p"))[turn]).toBe(want);
      const told = new RegExp(`^${usage!.completion_tokens} tokens, [\\d.]+ tokens/s, the first after [\\d.]+ s`);
      expect((await texts("article.assistant small"))[turn]).toMatch(told);
      messages.push({ role: "assistant", content: want });
    }
    expect(await texts("article.user p")).toEqual(["Hi", "<b>And</b> you?"]);
    await page.click("#fresh");
    expect(await texts("article")).toEqual([]);
    expect(opened.complaints).toEqual([]);
  });

  it("stops an answer, which the server then forgets", async () => {
    await using running = await serve(tiny.model);
    await running.handler.ready;
    await using opened = await open(running.url);
    const { page, texts } = opened;
    await page.fill("#temperature", "0");
    await page.fill("#most", "900");
    // At the first word, as fast as nobody can: the tiny model is fast, too.
    await page.evaluate(`new MutationObserver(() => {
      if (document.querySelector("article.assistant p")?.textContent) document.getElementById("stop").click();
    }).observe(document.getElementById("talk"), { childList: true, subtree: true })`);
    await opened.say("Tell me all");
    expect((await texts("article.assistant small"))[0]).toMatch(/^\d+ tokens.* · stopped$/);
    const line = () => running.lines.find(({ path }) => path === "/v1/chat/completions");
    await until(() => line() !== undefined && running.handler.size === 0);
    expect(line()?.status).toBe(499);
    expect(opened.complaints).toEqual([]);
  });

  it("asks for a key where one is wanted, and tells what the server refuses", async () => {
    await using running = await serve(tiny.model, { apiKeys: ["secret"], maxTokens: 16 }, "secret");
    await running.handler.ready;
    await using opened = await open(running.url);
    const { page, texts } = opened;
    await page.waitForSelector("#key");
    await page.fill("#key", "secret");
    await page.fill("#most", "17");
    await opened.say("Hi");
    await page.waitForSelector("article.assistant.failed");
    expect((await texts("article.assistant.failed small"))[0]).toMatch(/max_tokens must be .*17/);
    // What was not answered can be sent again.
    expect(await page.inputValue("#text")).toBe("Hi");
    await page.fill("#most", "3");
    await page.click("#send");
    await page.waitForSelector("article.assistant:not(.failed) p:not(:empty)");
    await page.waitForSelector("#send:enabled");
    expect(running.lines.at(-1)).toMatchObject({ status: 200, tokens: 3 });
    expect(opened.complaints).toEqual([]);
  });
});

describe("the page's policy", () => {
  it("lets nothing in from elsewhere, and nobody frame it; the page needs no key", async () => {
    await using running = await serve(tiny.model, { apiKeys: ["secret"] }, "secret");
    const response = await fetch(`${running.url}/`);
    expect(response.status).toBe(200);
    expect(response.headers.get("content-type")).toBe("text/html; charset=utf-8");
    expect(response.headers.get("content-security-policy")).toMatch(
      /^default-src 'none'; connect-src 'self'; .*frame-ancestors 'none'; script-src 'sha256-[^']+'; style-src 'sha256-[^']+'$/,
    );
    const html = await response.text();
    expect(html).not.toMatch(/https?:|@import|<link[^>]+href="(?!data:)|src=/);
    expect((await fetch(`${running.url}/`, { method: "POST" })).status).toBe(401);
  });
});
