// openai-node: what openai_python.py asks, where the two differ in more than their language.
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const question =
  "Start with 47. Add 38. Multiply by 3. Subtract 12. Add 59. What is the result?";
const messages = [{ role: "user", content: question }];
const ask = { model, messages, temperature: 0, max_tokens: 1500 };
const counted = { stream_options: { include_usage: true } };
const Verdict = z.object({ even: z.boolean(), size: z.enum(["small", "large"]) });
const tool = {
  type: "function",
  function: {
    name: "judge",
    description: "Say whether the result is even.",
    parameters: {
      type: "object",
      properties: { even: { type: "boolean" } },
      required: ["even"],
      additionalProperties: false,
    },
  },
};
const prompt = `<|im_start|>user\n${question}<|im_end|>\n<|im_start|>assistant\n<think>\n`;
const text = { model, prompt, temperature: 0, max_tokens: 1500 };
const answer = { model, input: question, temperature: 0, max_output_tokens: 1500 };
const { chat, completions, responses, models } = client;

async function streamed(stream) {
  const events = [];
  for await (const event of await stream) events.push(event);
  return { stream: events };
}

// The helper keeps the last piece alone of a field that it does not know.
async function helped(stream) {
  const made = await stream.finalChatCompletion();
  for (const { message } of made.choices) message.reasoning = Boolean(message.reasoning);
  return made;
}

const features = [
  ["models", "plain", async () => (await models.list()).data],
  ["chat", "thinks", () => chat.completions.create(ask)],
  ["chat, streamed", "thinks", () => streamed(chat.completions.create({ ...ask, stream: true }))],
  ["chat, streamed with usage", "thinks", () =>
    streamed(chat.completions.create({ ...ask, stream: true, ...counted }))],
  ["chat, stream helper", "thinks", () => helped(chat.completions.stream({ ...ask, ...counted }))],
  ["chat, n = 2", "thinks", () => chat.completions.create({ ...ask, temperature: 0.6, seed: 7, n: 2 })],
  ["chat, log-probabilities", "thinks", () =>
    chat.completions.create({ ...ask, logprobs: true, top_logprobs: 2 })],
  ["tools, not called", "thinks", () => chat.completions.create({ ...ask, tools: [tool] })],
  ["tools, required", "thinks", () =>
    chat.completions.create({ ...ask, tools: [tool], tool_choice: "required" })],
  ["tools, required, streamed", "thinks", () =>
    streamed(chat.completions.create({ ...ask, tools: [tool], tool_choice: "required", stream: true }))],
  ["structured output, parse", "thinks", () =>
    chat.completions.parse({ ...ask, response_format: zodResponseFormat(Verdict, "verdict") })],
  ["structured output, streamed parse", "thinks", () =>
    helped(chat.completions.stream(
      { ...ask, ...counted, response_format: zodResponseFormat(Verdict, "verdict") }))],
  ["completions", "thinks", () => completions.create(text)],
  ["completions, streamed", "thinks", () => streamed(completions.create({ ...text, stream: true }))],
  ["responses", "thinks", () => responses.create(answer)],
  ["responses, streamed", "thinks", () => streamed(responses.create({ ...answer, stream: true }))],
  ["responses, structured output, parse", "thinks", () =>
    responses.parse({ ...answer, text: { format: zodTextFormat(Verdict, "verdict") } })],
  ["error, unknown model", "error", () => chat.completions.create({ ...ask, model: "nobody" })],
  ["error, no messages", "error", () => chat.completions.create({ ...ask, messages: [] })],
];

for (const [feature, kind, run] of features) {
  if (!feature.match(process.env.ONLY ?? "")) continue;
  const line = { feature, kind };
  try {
    line.reply = await run();
  } catch (error) {
    console.error(error);
    line.error = { type: error.constructor.name, status: error.status ?? null };
  }
  console.log(JSON.stringify(line));
}
