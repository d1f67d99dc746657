// K-LoRA in the browser: a line in the accordion that says, while the prompt is typed, which LoRA is
// content and which is style. It decides nothing: the same rules in Python (klora/hosts/webui/roles.py)
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
            parts.push(["klora-aside", `added normally: ${roles.extras.join(", ")}`]);
        }
        return parts;
    }

    if (typeof module !== "undefined" && module.exports) {
        module.exports = {tagsIn: tagsIn, assign: assign, cast: cast, lineOf: lineOf};
        return; // node, for the tests: there is no page
    }

    // ---- the page ----------------------------------------------------------------------------------

    const LOOK_EVERY = 600; // ms; pasting an infotext changes a prompt without any event
    const ASK_AFTER = 400; // ms without a change before the notes on the files are asked for
    const remembered = new Map(); // tab -> {seen, pair, asked, choices, timer}

    const page = () => gradioApp();
    const element = (id) => page().querySelector(`#${CSS.escape(id)}`);
    const liveLine = (tab) => page().querySelector(`.klora-live[data-tab="${tab}"]`);
    const promptBox = (tab) => page().querySelector(`#${tab}_prompt textarea`);

    function memory(tab) {
        if (!remembered.has(tab)) remembered.set(tab, {choices: {}, seen: null, asked: "", pair: ["", ""]});
        return remembered.get(tab);
    }

    /** What a dropdown says; while its list is open, a text that is none of its options is a search. */
    function choiceIn(tab, role, line, fallback) {
        const dropdown = element(line.dataset[role]);
        const text = dropdown?.querySelector("input")?.value.trim();
        const choices = memory(tab).choices;
        const options = dropdown ? [...dropdown.querySelectorAll("ul li")] : [];
        const isOption = options.some((option) => option.getAttribute("aria-label") === text);
        if (text && (isOption || options.length === 0)) choices[role] = text;
        return choices[role] ?? fallback;
    }

    function write(line, parts) {
        line.replaceChildren(...parts.map(([name, text]) => {
            const span = document.createElement("span");
            span.className = name;
            span.textContent = text; // never markup: names come from files and prompts
            return span;
        }));
    }

    /** The weight sliders matter only for a LoRA that the prompt does not load. */
    function showWeights(line, roles) {
        element(line.dataset.contentWeight)?.classList.toggle("klora-unused", !roles.content_picked);
        element(line.dataset.styleWeight)?.classList.toggle("klora-unused", !roles.style_picked);
    }

    /** Ask the server about the two files, once the pair has stayed the same for a moment. */
    function askForNotes(tab, line, roles) {
        const state = memory(tab);
        state.pair = [roles.content ?? "", roles.style ?? ""];
        clearTimeout(state.timer);
        state.timer = setTimeout(() => {
            const wanted = JSON.stringify(state.pair);
            const button = element(line.dataset.pairButton);
            if (!button || wanted === state.asked || !line.isConnected) return;
            state.asked = wanted;
            button.click();
        }, ASK_AFTER);
    }

    function look(tab) {
        const line = liveLine(tab);
        const prompt = promptBox(tab);
        if (!line || !prompt || line.offsetParent === null) return; // folded away or another tab
        const content = choiceIn(tab, "content", line, FIRST);
        const style = choiceIn(tab, "style", line, SECOND);
        const state = memory(tab);
        const seen = JSON.stringify([prompt.value, content, style]);
        if (seen === state.seen && line.firstElementChild) return;
        state.seen = seen;
        const aliases = new Map(Object.entries(JSON.parse(line.dataset.aliases)));
        const kinds = line.dataset.kinds?.split(" ") ?? KINDS;
        const roles = cast(prompt.value, content, style, aliases, kinds);
        write(line, lineOf(roles));
        line.classList.toggle("klora-incomplete", roles.problem !== null);
        showWeights(line, roles);
        askForNotes(tab, line, roles);
    }

    function lookEverywhere() {
        look("txt2img");
        look("img2img");
    }

    /** Add a trigger word to the prompt of the tab its button is in, unless it is there. */
    function addWord(button) {
        const accordion = button.closest(".input-accordion") ?? document.body;
        const tab = accordion.querySelector(".klora-live")?.dataset.tab;
        const prompt = tab && promptBox(tab);
        // Brackets in a tag are part of its name, not emphasis.
        const word = button.textContent.replace(/(?<!\\)[()[\]]/g, "\\$&");
        if (!prompt || prompt.value.includes(word)) return;
        const before = prompt.value.trimEnd();
        prompt.value = before === "" ? word : before + (before.endsWith(",") ? " " : ", ") + word;
        updateInput(prompt);
    }

    /** The input of the content or style dropdown that `target` is in, if it is in one. */
    function loraInput(target) {
        const lines = [...page().querySelectorAll(".klora-live")];
        const ids = lines.flatMap((line) => [line.dataset.content, line.dataset.style]);
        const dropdown = ids.length && target.closest?.(ids.map((id) => `#${CSS.escape(id)}`).join());
        return dropdown ? dropdown.querySelector("input") : null;
    }

    // For the events that the accordion wires (klora/hosts/webui/accordion.py).
    window.klora = {
        pair: (tab) => memory(tab).pair,
        withPrompt: (tab, values) => {
            const steps = page().querySelector(`#${tab}_steps input[type=number]`);
            return [promptBox(tab)?.value ?? "", steps?.value ?? "20", ...values.slice(2)];
        },
    };

    // One listener each on the document, so that nothing needs to be found again when gradio redraws.
    document.addEventListener("input", (event) => {
        if (event.target.closest?.("#txt2img_prompt, #img2img_prompt")) lookEverywhere();
    });
    document.addEventListener("focusin", (event) => {
        // Typing then searches for a LoRA, where it would else be inserted into the present choice.
        if (loraInput(event.target) === event.target) event.target.select();
    });
    document.addEventListener("click", (event) => {
        const button = event.target.closest?.(".klora-word");
        if (button) addWord(button);
        // Some versions of gradio open the list again right after a pick: the click lands in a label.
        if (event.target.closest?.("li")) setTimeout(() => loraInput(event.target)?.blur());
    });
    onUiLoaded(() => {
        lookEverywhere();
        setInterval(lookEverywhere, LOOK_EVERY);
    });
})();
