// What K-LoRA says in the browser, in the user's language. The WebUI translates a text of the page where it
// stands alone (its localization files, of which the extension brings two); sentences with names in them are
// translated here, by entries of the same files that have {places}.
"use strict";

(function() {
    const escaped = (text) => text.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
    const NAME = "K-LoRA: "; // with which sentences begin that may be read elsewhere than here
    let templates = null;

    /** Places that take a text of this form alone: a tag may hold the comma that would end another's text. */
    const FORMS = {tag: "<[^>]*>", setting: "\\w+"};
    /** Places that hold what has an entry of its own. */
    const NESTED = ["sentence", "label"];

    /** An entry with {places} as a pattern with a group for each. */
    function pattern(template) {
        const parts = template.split(/\{(\w+)\}/);
        const names = parts.filter((_, at) => at % 2 === 1);
        const source = parts.map((part, at) => at % 2 ? `(${FORMS[part] ?? "[^]*?"})` : escaped(part)).join("");
        const nested = names.filter((name) => NESTED.includes(name));
        return {names: names, nested: nested, expression: new RegExp(`^${source}$`)};
    }

    function filled(template, values) {
        return template.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
    }

    /** What stands in a place, translated; a sentence has lost its full stop there, but its entry has one. */
    function inner(text, words, patterns) {
        const told = translated(text, words, patterns);
        if (told !== text) return told;
        const whole = translated(`${text}.`, words, patterns);
        return whole === `${text}.` ? text : whole.replace(/[.。]$/, "");
    }

    /** `text` in the language of `words` (English -> translation), also where it is a filled-in template. */
    function translated(text, words, patterns) {
        if (Object.hasOwn(words, text)) return words[text];
        if (text.startsWith(NAME)) return NAME + translated(text.slice(NAME.length), words, patterns);
        let half = null; // around a sentence that has no entry, for want of one for the whole
        for (const [template, {names, nested, expression}] of patterns) {
            const found = expression.exec(text);
            if (!found) continue;
            const values = Object.fromEntries(names.map((name, at) => [name, found[at + 1]]));
            const told = Object.fromEntries(nested.map((name) => [name, inner(values[name], words, patterns)]));
            const result = filled(words[template], {...values, ...told});
            if (nested.every((name) => told[name] !== values[name])) return result;
            half ??= result;
        }
        return half ?? text;
    }

    /** The entries with places: first those around a sentence, whose words may fit another too, then the longest. */
    const patternsOf = (words) => Object.keys(words).filter((one) => /\{\w+\}/.test(one))
        .map((one) => [one, pattern(one)])
        .sort(([a, first], [b, second]) => second.nested.length - first.nested.length || b.length - a.length);

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
