/** The request of the form as a command or a program that others can run. Pure. Keys are never written, only where they are. */

const SAID_BY_OPENAI = {
  text: ["model", "prompt", "max_tokens", "n", "seed", "temperature", "top_p", "presence_penalty", "frequency_penalty", "stop"],
  image: ["model", "prompt", "n", "size"],
};
const PICTURE_FILE = "picture.png";

export const LANGUAGES = { curl: "curl", openai: "Python, openai", httpx: "Python, httpx" };

/** `body` is that of /v1/generate without `stream`; `base` the server's address without a slash at its end; `keyed` whether
 *  it asks for a key; a given picture is read from a file, not written out. */
export function snippet(language, base, body, kind, keyed) {
  const write = { curl, openai, httpx }[language];
  const { image, ...rest } = body;
  return write(base, rest, kind, keyed, image !== undefined);
}

function curl(base, body, kind, keyed, pictured) {
  const stands = "PICTURE-STANDS-HERE";
  const json = JSON.stringify({ ...body, ...(pictured && { image: stands }), stream: true }, null, 2).replaceAll("'", "'\\''");
  const data = json.replace(stands, `'"$(base64 < ${PICTURE_FILE} | tr -d '\\n')"'`);
  const lines = [`curl -N ${base}/v1/generate \\`, "  -H 'Content-Type: application/json' \\"];
  if (keyed) lines.push('  -H "Authorization: Bearer $STRIDE_API_KEY" \\');
  if (!pictured) return [...lines, `  -d '${data}'`].join("\n");
  // A picture is longer than one argument of a program may be.
  return [`printf '%s' '${data}' \\`, `  | ${lines[0]}`, ...lines.slice(1), "  --data-binary @-"].join("\n");
}

function openai(base, body, kind, keyed, pictured) {
  const { preview_every: _, ...asked } = body;
  const known = Object.entries(asked).filter(([name]) => SAID_BY_OPENAI[kind].includes(name));
  const extra = Object.fromEntries(Object.entries(asked).filter(([name]) => !SAID_BY_OPENAI[kind].includes(name)));
  const streamed = kind === "text" && (body.n ?? 1) === 1;
  const lines = known.map(([name, value]) => `    ${name}=${python(value, 1)},`);
  if (kind === "image") lines.push('    response_format="b64_json",');
  if (streamed) lines.push("    stream=True,");
  const given = pictured ? `,\n        "image": ${pictureInPython}` : "";
  const written = python(extra, 1).replace(/,\n {4}\}$/, `${given},\n    }`);
  if (Object.keys(extra).length) lines.push(`    extra_body=${written},`);
  const method = kind === "text" ? "completions.create" : "images.generate";
  const imports = [kind === "image" && "import base64", keyed && "import os"].filter(Boolean);
  return [
    ...imports, imports.length && "", "from openai import OpenAI", "",
    `client = OpenAI(base_url="${base}/v1", api_key=${keyed ? 'os.environ["STRIDE_API_KEY"]' : '"none"'})`,
    `answer = client.${method}(`, ...lines, ")", ...consumed(kind, streamed),
  ].filter((line) => line !== false && line !== 0).join("\n");
}

function consumed(kind, streamed) {
  if (kind === "image") {
    return ["for i, image in enumerate(answer.data):", '    with open(f"stride-{i}.png", "wb") as file:',
      "        file.write(base64.b64decode(image.b64_json))"];
  }
  if (!streamed) return ["for choice in answer.choices:", "    print(choice.text, end=\"\\n\\n\")"];
  return ["for chunk in answer:", '    print(chunk.choices[0].text, end="", flush=True)'];
}

function httpx(base, body, kind, keyed, pictured) {
  const given = pictured ? `,\n    "image": ${pictureInPython}` : "";
  const written = python({ ...body, stream: true }, 0).replace(/,\n\}$/, `${given},\n}`);
  const headers = keyed ? ', headers={"Authorization": f"Bearer {os.environ[\'STRIDE_API_KEY\']}"}' : "";
  const imports = [(kind === "image" || pictured) && "import base64", "import json", keyed && "import os"].filter(Boolean);
  return [
    ...imports, "", "import httpx", "", `body = ${written}`, "",
    `with httpx.stream("POST", "${base}/v1/generate", json=body${headers}, timeout=None) as response:`,
    "    if response.is_error:", "        raise SystemExit(response.read().decode())", '    event = ""',
    "    for line in response.iter_lines():", '        if line.startswith("event: "):', "            event = line[7:]",
    '        elif line.startswith("data: "):', "            data = json.loads(line[6:])", ...followed(kind),
    '            elif event == "error":', '                raise SystemExit(data["error"]["message"])',
  ].join("\n");
}

function followed(kind) {
  if (kind === "text") {
    return ['            if event == "token":', '                print(data["text"], end="", flush=True)',
      '            elif event == "done":', '                print("\\n", data["usage"])'];
  }
  return ['            if event == "preview":', '                print("step", data["step"], "of", data["steps"], "t =", data["t"])',
    '            elif event == "done":', '                for output in data["outputs"]:',
    '                    with open(f"stride-{output[\'index\']}.png", "wb") as file:',
    '                        file.write(base64.b64decode(output["image"]))', '                print(data["usage"])'];
}

const pictureInPython = `base64.b64encode(open("${PICTURE_FILE}", "rb").read()).decode()`;

/** A value of JSON as Python writes it; objects over several lines, `depth` deep. */
export function python(value, depth = 0) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map((one) => python(one, depth)).join(", ")}]`;
  if (typeof value !== "object") return JSON.stringify(value);
  const entries = Object.entries(value);
  if (depth > 1 || entries.every(([, one]) => typeof one !== "object") && JSON.stringify(value).length < 72 && depth > 0) {
    return `{${entries.map(([name, one]) => `${JSON.stringify(name)}: ${python(one, depth + 1)}`).join(", ")}}`;
  }
  const space = "    ".repeat(depth + 1);
  const lines = entries.map(([name, one]) => `${space}${JSON.stringify(name)}: ${python(one, depth + 1)},\n`);
  return `{\n${lines.join("")}${"    ".repeat(depth)}}`;
}
