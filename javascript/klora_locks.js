// The blocks of the plan as buttons below the control "Locks": a press says who gets the block, the next press
// says it otherwise. The text of the control stays what counts; it can be typed as well.
"use strict";

(function() {
    const CHOICES = ["auto", "C", "S", "both", "none"];
    const PART = /^([a-z]+?)(\d*)(?:-(\d+))?=(\w+)$/i;

    /** The parts of a text, as {kind, first, last, choice}; null for a text that is not understood. */
    function partsOf(text) {
        const words = text.replaceAll(",", " ").trim().split(/\s+/).filter((one) => one && one.toLowerCase() !== "auto");
        const parts = words.map((word) => {
            const [, kind, first, last, said] = PART.exec(word) ?? [];
            const choice = CHOICES.find((one) => one.toLowerCase() === said?.toLowerCase());
            return choice && {kind: kind.toLowerCase(), first: Number(first), last: Number(last ?? first), choice: choice};
        });
        return parts.every(Boolean) ? parts : null;
    }

    const named = (block) => {
        const [, kind, number] = /^([a-z]+)(\d*)$/.exec(block);
        return {kind: kind, number: Number(number)};
    };
    const holds = (part, {kind, number}) => part.kind === kind && part.first <= number && number <= part.last;

    /** What a text says of each of the blocks; a later part wins. */
    function choicesOf(text, blocks) {
        const parts = partsOf(text) ?? [];
        return blocks.map((block) => parts.findLast((part) => holds(part, named(block)))?.choice ?? "auto");
    }

    function written({kind, first, last, choice}) {
        if (kind === "mid") return `mid=${choice}`;
        return `${kind}${first === last ? first : `${first}-${last}`}=${choice}`;
    }

    /** The text that says this of the blocks, neighbours together; parts about other blocks stay as they were. */
    function textOf(choices, blocks, before = "") {
        const parts = (partsOf(before) ?? []).filter((part) => !blocks.some((block) => holds(part, named(block))));
        let run = null;
        blocks.forEach((block, at) => {
            const {kind, number} = named(block), choice = choices[at];
            const goesOn = run?.kind === kind && run.choice === choice && number === run.last + 1;
            if (goesOn) run.last = number;
            else if (choice !== "auto") parts.push(run = {kind: kind, first: number, last: number, choice: choice});
            if (choice === "auto") run = null;
        });
        return parts.map(written).join(" ") || "auto";
    }

    /** The text after a press on a block. */
    function pressed(text, blocks, block) {
        const choices = choicesOf(text, blocks), at = blocks.indexOf(block);
        choices[at] = CHOICES[(CHOICES.indexOf(choices[at]) + 1) % CHOICES.length];
        return textOf(choices, blocks, text);
    }

    if (typeof module !== "undefined" && module.exports) {
        module.exports = {choicesOf: choicesOf, textOf: textOf, pressed: pressed};
        return;
    }

    const say = (text) => window.klora.say(text);
    const said = (choice) => ({
        C: say("content"),
        S: say("style"),
        both: say("both LoRAs"),
        none: say("neither LoRA"),
    })[choice] ?? say("the rule decides");

    function button(block) {
        const made = document.createElement("button");
        made.type = "button";
        made.dataset.block = block;
        return made;
    }

    /** Show the blocks in `place` by the text of `input`; presses write into it. */
    window.klora.showLocks = (place, input, blocks) => {
        if (!place || !input) return;
        if (place.dataset.blocks !== blocks.join()) {
            place.dataset.blocks = blocks.join();
            place.replaceChildren(...blocks.map(button));
            place.onclick = (event) => {
                const block = event.target.dataset.block;
                if (block === undefined) return;
                input.value = pressed(input.value, blocks, block);
                updateInput(input);
            };
        }
        choicesOf(input.value, blocks).forEach((choice, at) => {
            const one = place.children[at];
            one.className = `klora-lock klora-lock-${choice}`;
            one.textContent = choice === "auto" ? blocks[at] : `${blocks[at]} ${choice}`;
            one.setAttribute("aria-label", `${blocks[at]}: ${said(choice)}`);
        });
    };
})();
