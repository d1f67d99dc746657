// K-LoRA in the browser: which LoRA is content and which is style, for the line in the accordion that says so
// while the prompt is typed. It decides nothing: the same rules in Python (klora/hosts/webui/roles.py)
// cast the pair when the picture is made, and one table of cases tests both.
"use strict";

(function() {
    const FIRST = "first LoRA in the prompt";
    const SECOND = "second LoRA in the prompt";
    const POSITIONS = [FIRST, SECOND];

    const KINDS = ["lora", "lyco"];

    /** The names in the LoRA tags of a prompt, in order, as the host reads them. */
    function tagsIn(prompt, kinds = KINDS) {
        const names = [];
        for (const [, kind, words] of prompt.matchAll(/<(\w+):([^>]+)>/g)) {
            if (!kinds.includes(kind)) continue;
            const unnamed = words.split(":").filter((part) => part.split("=").length !== 2);
            if (unnamed.length) names.push(unnamed[0]);
        }
        return names;
    }

    /** What is wrong with the settings of a tag <klora:...>, but for their values; null if nothing is. */
    function problemOfSettings(text, written) {
        const seen = new Set();
        for (const part of written === "" ? [] : written.split(",")) {
            if (!part.includes("=") && [...seen].at(-1) === "preset") continue; // its name holds a comma
            const name = part.split("=")[0].trim().toLowerCase().replaceAll(" ", "_");
            if (!part.includes("=") || name === "") {
                const shown = part.trim();
                return `K-LoRA: in ${text}, '${shown}' is no setting; write name=value, such as balance=0.3.`;
            }
            if (seen.has(name)) return `K-LoRA: ${text} says ${name} twice; write it once.`;
            seen.add(name);
        }
        return null;
    }

    /** The tag <klora:content:style:settings> of a prompt: {names, problem}; null if there is none. */
    function pairTag(prompt) {
        const found = [...prompt.matchAll(/<klora:([^>]+)>/g)];
        if (found.length === 0) return null;
        if (found.length > 1) {
            const count = found.length;
            const problem = `K-LoRA: the prompt has ${count} tags <klora:...>; write one, because a picture has one pair.`;
            return {names: [], problem: problem};
        }
        const [text, words] = found[0];
        const items = words.split(":");
        const first = items.findIndex((item) => item.includes("="));
        const names = (first < 0 ? items : items.slice(0, first)).map((item) => item.trim());
        if (![0, 2].includes(names.length) || names.includes("")) {
            const remedy = "write the content, the style and then settings, such as <klora:fox:ink:balance=0.3>";
            return {names: [], problem: `K-LoRA: ${text} does not name two LoRAs; ${remedy}.`};
        }
        return {names: names, problem: problemOfSettings(text, items.slice(names.length).join(":"))};
    }

    function byPosition(choice, present, otherPick) {
        const index = POSITIONS.indexOf(choice);
        if (index < present.length && present[index] !== otherPick) return present[index];
        const left = present.filter((name) => name !== otherPick);
        return left.length && (otherPick !== null || index === 0) ? left[0] : null;
    }

    function problemOf(content, style, found) {
        if (content !== null && content === style) {
            return `K-LoRA: content and style are both ${content}: choose two different LoRAs.`;
        }
        if (content !== null && style !== null) return null;
        const count = found.length ? `${found.length} (${found.join(", ")})` : "none";
        let remedy = "add the content LoRA and the style LoRA to the prompt or pick them in the accordion";
        if (content !== null || style !== null) {
            const missing = content === null ? "content" : "style";
            remedy = `add the ${missing} LoRA to the prompt or pick it in the accordion`;
        }
        return `K-LoRA needs two LoRAs, found ${count}: ${remedy}.`;
    }

    /** Cast the LoRAs of a prompt; `aliases` is a Map from an alias to the name of the same file. */
    function assign(tags, contentChoice, styleChoice, aliases) {
        const known = (name) => aliases.has(name) ? aliases.get(name) : name;
        const pick = (choice) => POSITIONS.includes(choice) ? null : known(choice);
        const present = [...new Set(tags.map(known))];
        const contentPick = pick(contentChoice);
        const stylePick = pick(styleChoice);
        const content = contentPick === null ? byPosition(contentChoice, present, stylePick) : contentPick;
        const style = stylePick === null ? byPosition(styleChoice, present, contentPick) : stylePick;
        const found = [...new Set([...present, contentPick, stylePick])].filter((name) => name !== null);
        return {
            content: content,
            style: style,
            content_picked: content !== null && !present.includes(content),
            style_picked: style !== null && !present.includes(style),
            extras: present.filter((name) => name !== content && name !== style),
            problem: problemOf(content, style, found),
        };
    }

    /** Cast the LoRAs of a whole prompt, whose tag <klora:content:style> wins over the two choices. */
    function cast(prompt, contentChoice, styleChoice, aliases, kinds = KINDS) {
        const tag = pairTag(prompt);
        if (tag !== null && tag.problem !== null) {
            return {
                content: null,
                style: null,
                content_picked: false,
                style_picked: false,
                extras: [],
                problem: tag.problem,
            };
        }
        const [content, style] = tag !== null && tag.names.length ? tag.names : [contentChoice, styleChoice];
        return assign(tagsIn(prompt, kinds), content, style, aliases);
    }

    /** The sentence parts of the live line: [class, text], in order. */
    function lineOf(roles) {
        const parts = [];
        const say = (role, title, name, picked) => {
            if (name === null) return;
            parts.push([`klora-${role}`, title], ["klora-name", name]);
            if (picked) parts.push(["klora-aside", "picked here, loaded with its own weight"]);
        };
        say("content", "Content", roles.content, roles.content_picked);
        say("style", "Style", roles.style, roles.style_picked);
        if (roles.problem !== null) {
            parts.push(["klora-problem", roles.problem]);
        }
        if (roles.extras.length && roles.problem === null) {
            const isPicked = roles.content_picked || roles.style_picked;
            parts.push(isPicked ? ["klora-third", "in the prompt too, added as a third LoRA:"]
                                : ["klora-aside", "added normally:"]);
            parts.push(["klora-name", roles.extras.join(", ")]);
        }
        return parts;
    }

    /** Whether a prompt says a word: not as a part of another, and not in a tag, where a LoRA's name may be it. */
    function hasWord(prompt, word) {
        const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        const whole = new RegExp(`(?<![\\p{L}\\p{N}_])${escaped}(?![\\p{L}\\p{N}_])`, "u");
        return whole.test(prompt.replace(/<[^>]+>/g, "<>"));
    }

    /** The prompt with a trigger word, added at its end unless the prompt says it. */
    function withWord(prompt, word) {
        const written = word.replace(/(?<!\\)[()[\]]/g, "\\$&"); // brackets of a word are not emphasis
        if (hasWord(prompt, written)) return prompt;
        const before = prompt.trimEnd();
        return before === "" ? written : before + (before.endsWith(",") ? " " : ", ") + written;
    }

    const shared = {tagsIn: tagsIn, assign: assign, cast: cast, lineOf: lineOf, withWord: withWord};
    if (typeof module !== "undefined" && module.exports) {
        module.exports = shared;
        return; // node, for the tests: there is no page
    }

    window.klora = shared;
})();
