// Counts words. An ES module; a CommonJS `index.js` with `exports.handler` works as well.
export const handler = async (event, context) => {
  const words = String(event.text ?? "").split(/\s+/).filter(Boolean);
  console.log("request", context.awsRequestId, "has", words.length, "words");
  const longest = [...words].sort((a, b) => b.length - a.length)[0] ?? null;
  return { words: words.length, longest };
};
