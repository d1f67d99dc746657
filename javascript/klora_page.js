// The accordion in the page: the live line, the plan, presets, comparison. It listens to what the user does
// and asks the server through buttons that are never seen (klora/hosts/webui/wiring.py).
"use strict";

(function() {
    const FIRST = "first LoRA in the prompt";
    const SECOND = "second LoRA in the prompt";
    const TABS = ["txt2img", "img2img"];
    const LOOK_EVERY = 600; // ms; pasting an infotext changes a prompt without any event
    const ASK_AFTER = 400; // ms without a change before the notes on the files are asked for
    const GIVE_UP_AFTER = 120000; // ms without an answer before a plan is asked for again
    const LOADING = [2000, 6000, 15000]; // ms after a change of checkpoint, which takes its time to load

    const remembered = new Map(); // tab -> what is known of it
    const say = (...told) => window.klora.say(...told);
    const page = () => gradioApp();
    const element = (id) => id ? page().querySelector(`#${CSS.escape(id)}`) : null;
    const liveLine = (tab) => page().querySelector(`.klora-live[data-tab="${tab}"]`);
    const promptBox = (tab) => page().querySelector(`#${tab}_prompt textarea`);
    const valueOf = (selector) => page().querySelector(selector)?.value ?? "";
    const checkpoint = () => valueOf("#setting_sd_model_checkpoint input, #setting_sd_model_checkpoint select");

    function memory(tab) {
        if (!remembered.has(tab)) {
            remembered.set(tab, {choices: {}, seen: null, asked: "", pair: ["", ""], key: null, wonFor: ""});
        }
        return remembered.get(tab);
    }

    function factsOf(tab) {
        const state = memory(tab), line = liveLine(tab);
        if (line && state.facts === undefined) state.facts = JSON.parse(line.dataset.facts);
        return state.facts;
    }

    const control = (tab, name) => element(factsOf(tab)?.ids[name]);
    const press = (tab, name) => element(factsOf(tab)?.buttons[name])?.click();
    const valueNamed = (tab, name) => memory(tab).values?.[factsOf(tab).order.indexOf(name)];

    // ---- roles -------------------------------------------------------------------------------------

    /** What a dropdown says; while its list is open, a text that is none of its options is a search. */
    function choiceIn(tab, role, fallback) {
        const dropdown = control(tab, role);
        const text = dropdown?.querySelector("input")?.value.trim();
        const choices = memory(tab).choices;
        const options = dropdown ? [...dropdown.querySelectorAll("ul li")] : [];
        const isOption = options.some((option) => option.getAttribute("aria-label") === text);
        if (text && (isOption || options.length === 0)) choices[role] = text;
        return choices[role] ?? fallback;
    }

    function write(tab, line, roles, problem) {
        const parts = window.klora.lineOf({...roles, problem: problem}).map(([name, text]) => {
            const span = document.createElement("span");
            span.className = name;
            span.textContent = name === "klora-name" ? text : say(text); // never markup: names come from files
            return span;
        });
        if (parts.some((part) => part.className === "klora-third")) {
            const button = document.createElement("button");
            button.type = "button";
            button.className = "klora-word klora-remove";
            button.textContent = say("Take it out of the prompt");
            button.addEventListener("click", () => takeOut(tab, roles.extras));
            parts.push(button);
        }
        line.replaceChildren(...together(parts));
        line.classList.toggle("klora-incomplete", problem !== null);
    }

    /** The same parts, each title in one element with the name after it: a narrow line breaks between LoRAs. */
    function together(parts) {
        const lines = [];
        for (const part of parts) {
            const isTitle = ["klora-content", "klora-style"].includes(part.className);
            if (isTitle) {
                const pair = document.createElement("span");
                pair.className = "klora-role";
                lines.push(pair);
            }
            const last = lines.at(-1);
            if (isTitle || (part.className === "klora-name" && last?.childElementCount === 1)) last.append(part);
            else lines.push(part);
        }
        return lines;
    }

    /** Remove the tags of these LoRAs from the prompt. */
    function takeOut(tab, names) {
        const prompt = promptBox(tab), aliases = new Map(Object.entries(factsOf(tab).aliases));
        prompt.value = prompt.value.replace(/<\w+:[^>]+>/g, (tag) => {
            const [name] = window.klora.tagsIn(tag);
            return name !== undefined && names.includes(aliases.get(name) ?? name) ? "" : tag;
        }).replace(/ {2,}/g, " ").trim();
        updateInput(prompt);
        look(tab);
    }

    /** The weight sliders matter only for a LoRA that the prompt does not load. */
    function showWeights(tab, roles) {
        control(tab, "content_weight")?.classList.toggle("klora-unused", !roles.content_picked);
        control(tab, "style_weight")?.classList.toggle("klora-unused", !roles.style_picked);
    }

    /** Ask the server about the two files, once the pair has stayed the same for a moment. */
    function askForNotes(tab, roles) {
        const state = memory(tab);
        state.pair = [roles.content ?? "", roles.style ?? ""];
        const wanted = JSON.stringify([state.pair, checkpoint()]);
        if (wanted === state.asked) return;
        const isOtherCheckpoint = state.asked && JSON.parse(state.asked)[1] !== checkpoint();
        state.asked = wanted;
        clearTimeout(state.timer);
        state.timer = setTimeout(() => press(tab, "pair_button"), ASK_AFTER);
        if (isOtherCheckpoint) LOADING.forEach((wait) => setTimeout(() => press(tab, "pair_button"), wait));
    }

    /** The sentence that the server has about the files of the pair that is in the line, or null. */
    function problemOfFiles(tab) {
        const notes = element(factsOf(tab).notes);
        return notes?.querySelector(".klora-problem")?.textContent ?? null;
    }

    function look(tab) {
        const line = liveLine(tab), prompt = promptBox(tab);
        if (!line || !prompt || line.offsetParent === null) return; // folded away or another tab
        const state = memory(tab), facts = factsOf(tab);
        if (state.values === undefined) press(tab, "state_button");
        const content = choiceIn(tab, "content", FIRST), style = choiceIn(tab, "style", SECOND);
        const aliases = new Map(Object.entries(facts.aliases));
        const roles = window.klora.cast(prompt.value, content, style, aliases, facts.kinds);
        askForNotes(tab, roles);
        const problem = roles.problem ?? (state.noted === JSON.stringify(state.pair) ? problemOfFiles(tab) : null);
        const seen = JSON.stringify([roles, problem]);
        if (seen !== state.seen || !line.firstElementChild) {
            state.seen = seen;
            write(tab, line, roles, problem);
            showWeights(tab, roles);
        }
        state.problem = problem;
        wantPlan(tab);
        wantWon(tab);
    }

    /** Add a trigger word to the prompt of the tab its button is in, unless it is there. */
    function addWord(button) {
        const accordion = button.closest(".input-accordion") ?? document.body;
        const tab = accordion.querySelector(".klora-live")?.dataset.tab;
        const prompt = tab && promptBox(tab);
        const told = prompt ? window.klora.withWord(prompt.value, button.dataset.word) : "";
        if (!prompt || told === prompt.value) return;
        prompt.value = told;
        updateInput(prompt);
    }

    /** The input of the content or style dropdown that `target` is in, if it is in one. */
    function loraInput(target) {
        const dropdowns = TABS.flatMap((tab) => liveLine(tab) ? [control(tab, "content"), control(tab, "style")] : []);
        return dropdowns.find((one) => one?.contains(target))?.querySelector("input") ?? null;
    }

    // ---- the plan ----------------------------------------------------------------------------------

    function viewOf(tab, what, title) {
        const state = memory(tab), place = page().querySelector(`.klora-${what}[data-tab="${tab}"]`);
        if (place && state[what]?.place !== place) state[what] = new window.klora.PlanView(place, title);
        return state[what];
    }

    /** What the plan depends on beside the settings; text between the tags does not change it. */
    function circumstances(tab) {
        const tags = promptBox(tab).value.match(/<[^>]+>/g) ?? [];
        const steps = valueOf(`#${tab}_steps input[type=number]`) || "20";
        const asked = {prompt: tags.join(""), steps: steps};
        if (tab === "img2img") asked.strength = valueOf("#img2img_denoising_strength input[type=number]") || "0.75";
        return asked;
    }

    function wantPlan(tab) {
        const state = memory(tab), view = viewOf(tab, "plan", "Plan");
        if (!state.values || !view) return;
        if (state.problem !== null) {
            view.note("");
            view.waiting(false);
            state.key = null;
            return;
        }
        const key = JSON.stringify([circumstances(tab), state.values]);
        if (key === state.key) return;
        state.key = key;
        view.waiting(true);
        askForPlan(tab);
    }

    const question = (tab) => JSON.stringify({...circumstances(tab), key: memory(tab).key});

    /** One question at a time; what changes meanwhile is asked for when the answer is there. */
    function askForPlan(tab) {
        const state = memory(tab), now = Date.now();
        if (state.askedAt && now - state.askedAt < GIVE_UP_AFTER) return;
        state.askedAt = now;
        if (state.isIndirect) {
            press(tab, "plan_button");
        } else {
            window.klora.askDirectly(factsOf(tab).buttons.plan_button, [question(tab), ...state.values]).then(
                (text) => takePlan(tab, text),
                () => { // another gradio or a way between that lets only its own requests pass
                    state.isIndirect = true;
                    press(tab, "plan_button");
                });
        }
        clearTimeout(state.progressTimer);
        state.progressTimer = setTimeout(() => press(tab, "progress_button"), 700);
    }

    function takePlan(tab, text) {
        const state = memory(tab), view = viewOf(tab, "plan", "Plan");
        state.askedAt = 0;
        clearTimeout(state.progressTimer);
        const answer = text ? JSON.parse(text) : {problem: "The server did not answer; look at its console."};
        const isLate = answer.key !== state.key;
        if (state.key !== null && answer.plan && (!isLate || isOfThisPair(state, answer.plan))) {
            view.show(answer.plan);
            state.blocks = answer.plan.locks;
            showLocks(tab);
        } else if (state.key !== null && answer.problem && !isLate) {
            view.note(answer.problem, true);
        }
        view.waiting(isLate && state.key !== null);
        if (isLate && state.key !== null) askForPlan(tab);
    }

    const isOfThisPair = (state, plan) => JSON.stringify(plan.loras) === JSON.stringify(state.pair);

    function takeProgress(tab, text) {
        const state = memory(tab);
        if (!state.askedAt) return;
        const [done, all] = JSON.parse(text || "[0, 0]");
        if (all) viewOf(tab, "plan", "Plan").waiting(true, say("Scoring the pair, once: {done} of {all} layers", {done: done, all: all}));
        state.progressTimer = setTimeout(() => press(tab, "progress_button"), 700);
    }

    // ---- what won where in a picture that was made -----------------------------------------------------

    /** The infotext of the picture that the gallery shows. */
    function shownInfotext(tab) {
        try {
            const told = JSON.parse(valueOf(`#generation_info_${tab} textarea`));
            const chosen = typeof selected_gallery_index === "function" ? selected_gallery_index() : -1;
            const first = told.index_of_first_image ?? 0;
            return told.infotexts[chosen < first ? first : chosen] ?? "";
        } catch {
            return ""; // nothing was made yet
        }
    }

    function wantWon(tab) {
        const state = memory(tab), infotext = valueNamed(tab, "show_plan") ? shownInfotext(tab) : "";
        if (infotext === state.wonFor) return;
        state.wonFor = infotext;
        if (infotext) press(tab, "won_button");
        else viewOf(tab, "won", "")?.note("");
    }

    function takeWon(tab, text) {
        const view = viewOf(tab, "won", "What won where in the picture");
        const plans = JSON.parse(text || "[]");
        view.title = "What won where in the picture";
        if (plans.length) view.show(plans[plans.length - 1]);
        else view.note("");
    }

    // ---- settings ----------------------------------------------------------------------------------

    /** Settings of a rule or a transform are shown while it is chosen. */
    function showRule(tab) {
        const owned = new Set(), needed = new Set();
        for (const [chooser, parts] of Object.entries(factsOf(tab).parts)) {
            const chosen = valueNamed(tab, chooser);
            for (const [name, settings] of Object.entries(parts)) {
                for (const one of settings) {
                    owned.add(one);
                    if (name === chosen || !(chosen in parts)) needed.add(one);
                }
            }
        }
        for (const name of owned) control(tab, name)?.classList.toggle("klora-unused", !needed.has(name));
    }

    function showLocks(tab) {
        const place = page().querySelector(`.klora-locks[data-tab="${tab}"]`);
        window.klora.showLocks(place, control(tab, "locks")?.querySelector("input, textarea"), memory(tab).blocks ?? []);
    }

    /** A slider that moves: gradio tells of it later, in some versions much later. */
    function takeNumber(tab, input) {
        const state = memory(tab), {order, ids} = factsOf(tab), value = Number(input.value);
        const place = order.findIndex((name) => element(ids[name])?.contains(input));
        const range = place < 0 ? null : element(ids[order[place]]).querySelector("input[type=range]");
        const isTaken = range && state.values && input.value !== "" && value >= range.min && value <= range.max;
        if (!isTaken || state.values[place] === value) return;
        state.values = state.values.map((one, at) => at === place ? value : one);
        look(tab);
    }

    function openAccordion(tab) {
        const accordion = liveLine(tab)?.closest(".input-accordion");
        const label = accordion?.querySelector(".label-wrap");
        if (label && !label.classList.contains("open")) label.click();
    }

    /** Puts what the server has said in English, from the place `from` of a node's text on, in the user's language. */
    function tell(node, from) {
        if (from < 0) return; // another's text
        const text = node.textContent.slice(from), told = say(text);
        if (told !== text) node.textContent = told;
    }

    /** The same for the comments on a job, of which each line is another's. */
    function tellLines(box) {
        for (const line of box.childNodes) {
            const text = line.nodeType === Node.TEXT_NODE ? line.textContent.trimStart() : "";
            if (text.startsWith("K-LoRA: ")) tell(line, line.textContent.length - text.length);
        }
    }

    /** In older gradio the head of an accordion cannot be reached with the keyboard; sentences come in English. */
    function makeReadable(tab) {
        const accordion = liveLine(tab)?.closest(".input-accordion");
        for (const head of accordion?.querySelectorAll(".label-wrap") ?? []) {
            if (head.nodeName !== "BUTTON" && !head.hasAttribute("tabindex")) {
                head.tabIndex = 0;
                head.setAttribute("role", "button");
                head.addEventListener("keydown", (event) => {
                    if (event.target !== head || (event.key !== "Enter" && event.key !== " ")) return;
                    event.preventDefault();
                    head.click();
                });
            }
            head.setAttribute("aria-expanded", String(head.classList.contains("open")));
        }
        for (const problem of accordion?.querySelectorAll("p.klora-problem") ?? []) tell(problem, 0);
        for (const box of page().querySelectorAll(`[id^="html_"][id$="_${tab}"] .error`)) {
            tell(box, box.textContent.indexOf("K-LoRA")); // behind the name of the exception, which nobody reads
        }
        for (const box of page().querySelectorAll(`#html_log_${tab} p.comments`)) tellLines(box);
        for (const [id, label] of [["swap", "Swap content and style"], ["refresh", "Read the LoRA folder again"]]) {
            element(factsOf(tab)?.tools[id])?.setAttribute("aria-label", say(label));
        }
    }

    // ---- for the events that klora/hosts/webui/wiring.py wires ---------------------------------------

    const named = (text, before) => (window.prompt(say(text), before) ?? "").trim();

    Object.assign(window.klora, {
        /** The values of all controls; a preset changes many of them, and each change tells them all. */
        state: (tab, values) => {
            const state = memory(tab), wasOn = Boolean(state.values?.[0]);
            state.values = values;
            if (!wasOn && values[0]) openAccordion(tab);
            if (!state.settling) queueMicrotask(() => {
                state.settling = false;
                showRule(tab);
                showLocks(tab);
                look(tab);
            });
            state.settling = true;
            return new Promise(() => {}); // for ever: an answer, even of nothing, makes gradio 4 draw the whole page
        },
        pair: (tab) => memory(tab).pair,
        noted: (tab) => {
            memory(tab).noted = JSON.stringify(memory(tab).pair);
            setTimeout(() => look(tab));
            return [];
        },
        ask: (tab, values) => [question(tab), ...values.slice(1)],
        take: (tab, text) => {
            takePlan(tab, text);
            return [];
        },
        nothing: () => [],
        takeProgress: (tab, text) => {
            takeProgress(tab, text);
            return [];
        },
        askWon: (tab) => memory(tab).wonFor,
        takeWon: (tab, text) => {
            takeWon(tab, text);
            return [];
        },
        savePreset: (tab, values) => [named("Name of the preset:", ""), ...values.slice(1)],
        renamePreset: (_tab, [, preset]) => [named("New name of the preset:", preset), preset],
        deletePreset: (_tab, [, preset]) =>
            [window.confirm(say("Delete the preset {name}?", {name: preset})) ? "yes" : "", preset],
        importPreset: () => new Promise((answer) => {
            const input = document.createElement("input");
            input.type = "file";
            input.accept = ".json,application/json";
            input.addEventListener("change", () => input.files[0].text().then(answer));
            input.addEventListener("cancel", () => answer(""));
            input.click();
        }),
        presetsChanged: (tab) => {
            TABS.filter((other) => other !== tab).forEach((other) => press(other, "presets_button"));
            return [];
        },
        download: (text) => {
            const link = document.createElement("a");
            link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
            link.download = "klora-presets.json";
            link.click();
            setTimeout(() => URL.revokeObjectURL(link.href), 10000);
            return [];
        },
        /** Press Generate with the mark of a comparison set, and take the mark away again. */
        compare: (tab, kind) => {
            if (memory(tab).problem !== null) {
                liveLine(tab)?.scrollIntoView({block: "center"});
                return "";
            }
            setTimeout(() => page().querySelector(`#${tab}_generate`)?.click(), 80);
            setTimeout(() => press(tab, "compare_done"), 900);
            return kind;
        },
    });

    // One listener each on the document, so that nothing needs to be found again when gradio redraws.
    document.addEventListener("input", (event) => {
        if (event.target.closest?.("#txt2img_prompt, #img2img_prompt")) TABS.forEach(look);
        if (event.target.closest?.(".input-accordion")) TABS.filter(liveLine).forEach((tab) => takeNumber(tab, event.target));
    });
    document.addEventListener("focusin", (event) => {
        // Typing then searches for a LoRA, where it would else be inserted into the present choice.
        if (loraInput(event.target) === event.target) event.target.select();
    });
    document.addEventListener("click", (event) => {
        const button = event.target.closest?.(".klora-word:not(.klora-remove)");
        if (button) addWord(button);
        // Some versions of gradio open the list again right after a pick: the click lands in a label.
        if (event.target.closest?.("li")) setTimeout(() => loraInput(event.target)?.blur());
    });
    onUiLoaded(() => {
        const lookEverywhere = () => TABS.forEach((tab) => {
            look(tab);
            if (liveLine(tab)) makeReadable(tab);
        });
        TABS.forEach((tab) => liveLine(tab) && press(tab, "state_button"));
        lookEverywhere();
        setInterval(lookEverywhere, LOOK_EVERY);
    });
})();
