// What K-LoRA says in the browser, in the user's language. The WebUI translates a text of the page where it
// stands alone (its localization files, of which the extension brings two); sentences with names in them are
// translated here, by entries of the same files that have {places}.
"use strict";

(function() {
    const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const NAME = "K-LoRA: "; // with which sentences begin that may be read elsewhere than here
    let templates = null;

    /** An entry with {places} as a pattern with a group for each. */
    function pattern(template) {
        const parts = template.split(/\{(\w+)\}/);
        const names = parts.filter((_, at) => at % 2 === 1);
        const source = parts.map((part, at) => at % 2 ? "([^]*?)" : escaped(part)).join("");
        return {names: names, expression: new RegExp(`^${source}$`)};
    }

    function filled(template, values) {
        return template.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
    }

    /** `text` in the language of `words` (English -> translation), also where it is a filled-in template. */
    function translated(text, words, patterns) {
        if (Object.hasOwn(words, text)) return words[text];
        if (text.startsWith(NAME)) return NAME + translated(text.slice(NAME.length), words, patterns);
        for (const [template, {names, expression}] of patterns) {
            const found = expression.exec(text);
            if (!found) continue;
            const values = Object.fromEntries(names.map((name, at) => [name, found[at + 1]]));
            return filled(words[template], values);
        }
        return text;
    }

    const patternsOf = (words) => Object.keys(words).filter((one) => /\{\w+\}/.test(one))
        .sort((a, b) => b.length - a.length).map((one) => [one, pattern(one)]);

    if (typeof module !== "undefined" && module.exports) {
        module.exports = {translated: (text, words) => translated(text, words, patternsOf(words))};
        return;
    }

    /** A text of ours as the user reads it; `values` fill its {places}. */
    window.klora.say = (text, values = {}) => {
        const words = window.localization ?? {};
        templates ??= patternsOf(words);
        return values && Object.keys(values).length
            ? filled(words[text] ?? text, values) : translated(text, words, templates);
    };
})();
