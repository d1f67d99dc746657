// The plan, drawn: layers from top to bottom in the order of a forward pass, steps from left to right, the
// shares of the two LoRAs as mixed colours. Below it how much the style gets in each step, and how many
// layers each step touches. A line of text says what is under the pointer, or under the arrow keys.
"use strict";

(function() {
    const CONTENT = [0xf2, 0x8e, 0x2b];
    const STYLE = [0x3b, 0x6f, 0xb6];
    const UNIT = 1000;
    const LEFT = 66, RIGHT = 8, TOP = 4, GAP = 16, STRIP = 34, AXIS = 16; // px
    const HIGHEST = 260;

    /** The shares of content and style, a flat array [steps, layers, 2]. */
    function sharesOf(text) {
        const bytes = Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
        const view = new DataView(bytes.buffer);
        return Float32Array.from({length: bytes.length / 2}, (_, at) => view.getInt16(2 * at, true) / UNIT);
    }

    /** Content's part of what both get, half where neither gets anything. */
    function partOf(content, style) {
        const both = Math.abs(content) + Math.abs(style);
        return both > 0 ? Math.abs(content) / both : 0.5;
    }

    /** Red, green and blue, 0 to 255: the colours mixed by the parts, the paler the less of both there is. */
    function colourOf(content, style) {
        const part = partOf(content, style);
        const strength = Math.min(1, Math.max(Math.abs(content), Math.abs(style)));
        return CONTENT.map((full, at) =>
            255 - strength * (255 - (part * full + (1 - part) * STYLE[at])));
    }

    /** For each step the style's part, and how many layers it touches: where shares differ from the step before. */
    function stepsOf(plan, shares) {
        const count = plan.layers.length;
        return Array.from({length: plan.steps}, (_, step) => {
            let style = 0, touched = 0;
            for (let layer = 0; layer < count; layer++) {
                const at = 2 * (step * count + layer), before = at - 2 * count;
                style += 1 - partOf(shares[at], shares[at + 1]);
                if (step && (shares[at] !== shares[before] || shares[at + 1] !== shares[before + 1])) touched++;
            }
            return {style: count ? style / count : 0, touched: touched};
        });
    }

    if (typeof module !== "undefined" && module.exports) {
        module.exports = {sharesOf: sharesOf, colourOf: colourOf, stepsOf: stepsOf};
        return;
    }

    const say = (...told) => window.klora.say(...told);
    const percent = (part) => `${Math.round(100 * part)} %`;

    function made(kind, name, text = "") {
        const element = document.createElement(kind);
        element.className = name;
        element.textContent = text; // never markup: names come from files and prompts
        return element;
    }

    /** The layers by steps as a picture of one pixel each. */
    function pixels(plan, shares) {
        const small = document.createElement("canvas");
        small.width = plan.steps;
        small.height = Math.max(1, plan.layers.length);
        const context = small.getContext("2d");
        const image = context.createImageData(small.width, small.height);
        const known = new Map(); // most plans have few different shares
        for (let step = 0; step < plan.steps; step++) {
            for (let layer = 0; layer < plan.layers.length; layer++) {
                const at = 2 * (step * plan.layers.length + layer);
                const key = `${shares[at]} ${shares[at + 1]}`;
                if (!known.has(key)) known.set(key, [...colourOf(shares[at], shares[at + 1]), 255]);
                image.data.set(known.get(key), 4 * (layer * plan.steps + step));
            }
        }
        context.putImageData(image, 0, 0);
        return small;
    }

    class PlanView {
        constructor(place, title) {
            this.place = place;
            this.title = title;
            this.cursor = null;
        }

        /** What stands there before there is a plan, or in its place: a sentence, in red if it is a problem. */
        note(text, isProblem = false) {
            this.plan = null;
            const line = made("p", isProblem ? "klora-problem" : "klora-aside", say(text));
            this.place.replaceChildren(...(text ? [line] : []));
        }

        waiting(isWaiting, text = "") {
            this.place.classList.toggle("klora-waiting", isWaiting);
            const line = this.place.querySelector(".klora-readout");
            if (isWaiting && text && line) line.textContent = text;
            else if (isWaiting && text) this.note(text);
        }

        show(plan) {
            this.plan = plan;
            this.shares = sharesOf(plan.shares);
            this.steps = stepsOf(plan, this.shares);
            this.image = pixels(plan, this.shares);
            if (!this.place.querySelector("canvas")) this.build();
            this.describe();
            this.paint();
            this.read();
        }

        build() {
            this.head = made("p", "klora-plan-head");
            this.canvas = made("canvas", "klora-canvas");
            this.canvas.tabIndex = 0;
            this.canvas.setAttribute("role", "img");
            this.readout = made("p", "klora-readout");
            this.readout.setAttribute("aria-live", "polite");
            this.caption = made("p", "klora-caption");
            this.place.replaceChildren(this.head, this.canvas, this.readout, this.caption);
            this.canvas.addEventListener("pointermove", (event) => this.point(event));
            this.canvas.addEventListener("pointerleave", () => this.move(null));
            this.canvas.addEventListener("keydown", (event) => this.key(event));
            this.canvas.addEventListener("blur", () => this.move(null));
            new ResizeObserver(() => this.plan && this.canvas.isConnected && this.paint()).observe(this.place);
        }

        /** Whose plan this is, so that it can be told from another. */
        describe() {
            const {plan} = this;
            const part = (name, text) => made("span", name, text);
            this.head.replaceChildren(
                part("klora-plan-title", say(this.title)),
                part("klora-content", `${say("content")} ${percent(plan.part)}`),
                part("klora-style", `${say("style")} ${percent(1 - plan.part)}`));
            const settings = plan.settings.map(([label, value]) => `${say(label)} ${value}`);
            const known = plan.preset && plan.preset !== "none" ? [say(plan.preset)] : [];
            const size = say("{layers} layers, {steps} steps", {layers: plan.layers.length, steps: plan.steps});
            const told = [...known, ...settings, size];
            if (plan.gamma !== null) told.push(`gamma ${plan.gamma}`);
            this.caption.replaceChildren(
                part("klora-name", plan.loras.join(" + ")), part("klora-aside", told.join(" · ")));
            this.canvas.setAttribute("aria-label",
                `${say(this.title)}: ${plan.loras.join(" + ")}; ${this.head.textContent}`);
        }

        paint() {
            const width = this.place.clientWidth, {plan} = this;
            if (!width) return;
            const height = Math.min(HIGHEST, Math.max(120, plan.layers.length * 2));
            this.inner = {left: LEFT, top: TOP, width: width - LEFT - RIGHT, height: height};
            const whole = TOP + height + GAP + 2 * (STRIP + GAP) + AXIS;
            const ratio = window.devicePixelRatio || 1;
            this.canvas.width = Math.round(width * ratio);
            this.canvas.height = Math.round(whole * ratio);
            this.canvas.style.height = `${whole}px`;
            const context = this.canvas.getContext("2d");
            context.setTransform(ratio, 0, 0, ratio, 0, 0);
            const style = getComputedStyle(this.place);
            this.ink = style.color;
            context.font = `11px ${style.fontFamily}`;
            context.imageSmoothingEnabled = plan.layers.length > height;
            context.drawImage(this.image, LEFT, TOP, this.inner.width, height);
            this.labelBlocks(context);
            const strip = TOP + height + GAP;
            this.bars(context, strip, say("style"), this.steps.map((one) => one.style), `rgb(${STYLE})`);
            const most = Math.max(1, ...this.steps.map((one) => one.touched));
            this.bars(context, strip + STRIP + GAP, say("touched"),
                this.steps.map((one) => one.touched / most), this.ink);
            this.labelSteps(context, strip + 2 * (STRIP + GAP));
            this.mark(context);
        }

        labelBlocks(context) {
            const {top, height} = this.inner, count = this.plan.layers.length;
            context.fillStyle = this.ink;
            context.textAlign = "right";
            context.textBaseline = "middle";
            let free = top;
            for (const [name, first, size] of this.plan.blocks) {
                const start = top + first / count * height, middle = start + size / count * height / 2;
                if (first) {
                    context.save();
                    context.fillStyle = "rgb(255 255 255 / 0.75)";
                    context.fillRect(LEFT, start - 0.5, this.inner.width, 1);
                    context.restore();
                }
                if (middle - 6 < free || !name) continue;
                context.fillText(name, LEFT - 6, middle, LEFT - 8);
                free = middle + 6;
            }
        }

        bars(context, top, name, parts, colour) {
            const wide = this.inner.width / parts.length;
            context.fillStyle = this.ink;
            context.textAlign = "right";
            context.textBaseline = "middle";
            context.fillText(name, LEFT - 6, top + STRIP / 2, LEFT - 8);
            context.save();
            context.globalAlpha = 0.15;
            context.fillRect(LEFT, top + STRIP, this.inner.width, 1);
            context.globalAlpha = colour === this.ink ? 0.6 : 1;
            context.fillStyle = colour;
            parts.forEach((part, at) => {
                context.fillRect(LEFT + at * wide, top + STRIP * (1 - part), Math.max(1, wide - 1), STRIP * part);
            });
            context.restore();
        }

        labelSteps(context, top) {
            const {steps} = this.plan, wide = this.inner.width / steps;
            const every = [1, 2, 5, 10, 20, 50, 100, 200, 500].find((one) => one * wide >= 26) ?? 1000;
            context.fillStyle = this.ink;
            context.textAlign = "center";
            for (let step = 1; step <= steps; step++) {
                if (step !== 1 && step % every) continue;
                if (step === 1 && every === 1 && wide < 10) continue;
                context.fillText(String(step), LEFT + (step - 0.5) * wide, top, wide * every);
            }
            context.textAlign = "right";
            context.fillText(say("step"), LEFT - 6, top, LEFT - 8);
        }

        mark(context) {
            if (!this.cursor) return;
            const {width, height, top} = this.inner, {steps, layers} = this.plan;
            const wide = width / steps, high = height / layers.length;
            context.strokeStyle = this.ink;
            context.strokeRect(LEFT + this.cursor.step * wide, top, wide, height);
            context.strokeRect(LEFT, top + this.cursor.layer * high, width, Math.max(2, high));
        }

        point(event) {
            const box = this.canvas.getBoundingClientRect(), {left, top, width, height} = this.inner;
            const x = (event.clientX - box.left - left) / width, y = (event.clientY - box.top - top) / height;
            if (x < 0 || x >= 1 || y < 0) return this.move(null);
            this.move({
                step: Math.floor(x * this.plan.steps),
                layer: Math.min(this.plan.layers.length - 1, Math.floor(y * this.plan.layers.length)),
            });
        }

        key(event) {
            const step = {ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1]}[event.key];
            if (!step) return;
            event.preventDefault();
            const at = this.cursor ?? {step: 0, layer: 0};
            const within = (value, count) => Math.min(count - 1, Math.max(0, value));
            this.move({
                step: within(at.step + step[0], this.plan.steps),
                layer: within(at.layer + step[1], this.plan.layers.length),
            });
        }

        move(cursor) {
            if (JSON.stringify(cursor) === JSON.stringify(this.cursor) || !this.plan) return;
            this.cursor = cursor;
            this.paint();
            this.read();
        }

        read() {
            if (!this.cursor) {
                this.readout.textContent = say("Point at the plan, or use the arrow keys, to read it.");
                return;
            }
            const {plan, cursor} = this, count = plan.layers.length;
            cursor.step = Math.min(cursor.step, plan.steps - 1);
            cursor.layer = Math.min(cursor.layer, count - 1);
            const at = 2 * (cursor.step * count + cursor.layer);
            const told = [
                say("step {step}: {touched} layers touched",
                    {step: cursor.step + 1, touched: this.steps[cursor.step].touched}),
                plan.layers[cursor.layer],
                `${say("content")} ${this.shares[at].toFixed(2)}, ${say("style")} ${this.shares[at + 1].toFixed(2)}`,
            ];
            if (plan.scores) {
                told.push(say("scores {content} and {style}",
                    {content: plan.scores[0][cursor.layer], style: plan.scores[1][cursor.layer]}));
            }
            this.readout.textContent = told.join(" · ");
        }
    }

    window.klora.PlanView = PlanView;
})();
