"""Which kinds of thing the base model of world 2 knows, and which it must never meet.

The lists are explicit, so that the splits can be read and cannot drift.
"""

from __future__ import annotations

from klora.lab import world
from klora.lab.world import listed

STRANGERS: dict[str, tuple[str, ...]] = {
    "development": listed("strawberry penguin cactus guitar snail mushroom pineapple frog"),
    "test": listed("tulip octopus watermelon koala trumpet turtle hamburger elephant"),
}
"""Subjects that the base model does not know even by kind: the hard case, for each half."""

_FORMER_STRANGERS: tuple[str, ...] = tuple(
    name for name in world.HELD_OUT_SUBJECTS if name not in STRANGERS["development"] + STRANGERS["test"]
)

_MORE: tuple[str, ...] = listed(
    """
    alarm-clock alembic alien-monster american-football articulated-lorry artist-palette baby-bottle
    baby-chick balance-scale barber-pole bento-box bikini black-nib books bottle-with-popping-cork bowling
    building-construction bullet-train bus-stop card-index-dividers carousel-horse carp-streamer cat-face
    cherry-blossom chequered-flag cigarette circus-tent clamp classical-building clipboard clown-face
    cocktail-glass coffin comet computer-disk computer-mouse confetti-ball control-knobs cooked-rice
    cooking cow-face cowboy-hat-face credit-card crossed-swords curry-rice custard cyclone dango
    delivery-truck derelict-house desert-island desktop-computer dog-face dove dragon-face ear ewe eyes
    fallen-leaf fax-machine ferris-wheel ferry field-hockey file-cabinet film-frames film-projector
    fireworks fish-cake-with-swirl fishing-pole flag-in-hole flexed-biceps fork-and-knife fountain-pen
    framed-picture fried-shrimp funeral-urn gear globe-showing-americas goal-net goblin graduation-cap
    green-salad hammer-and-wrench hatching-chick herb high-voltage horse-face horizontal-traffic-light
    hospital hotel hourglass-done house-with-garden ice-hockey ice-skate japanese-castle japanese-dolls
    joker joystick kick-scooter kimono label last-quarter-moon-face ledger level-slider locomotive
    love-letter magnifying-glass-tilted-left mans-shoe mantelpiece-clock martial-arts-uniform megaphone
    menorah milky-way minibus moai monkey-face mosque motor-boat motor-scooter mountain mouse-face mouth
    movie-camera musical-keyboard musical-note musical-score nail-polish name-badge national-park necktie
    newspaper nose notebook nut-and-bolt oden office-building ogre oil-drum ok-hand old-key
    oncoming-automobile oncoming-bus open-book open-file-folder optical-disk paintbrush party-popper
    passenger-ship paw-prints pen performing-arts pick pig-face pile-of-poo pine-decoration ping-pong
    police-car poodle pool-8-ball post-office postal-horn postbox pot-of-food prayer-beads printer pushpin
    rabbit-face railway-car ram rat red-paper-lantern reminder-ribbon rescue-workers-helmet ribbon
    rice-ball rice-cracker roller-coaster rosette rugby-football running-shirt sake satellite school seat
    shallow-pan-of-food shaved-ice sheaf-of-rice shinto-shrine shooting-star shopping-bags shopping-cart
    shortcake shower skis slot-machine small-airplane snow-capped-mountain soft-ice-cream spaghetti
    sparkler speech-balloon speedboat spider-web spiral-calendar sport-utility-vehicle spouting-whale
    stadium statue-of-liberty stop-sign studio-microphone stuffed-flatbread sun-behind-cloud
    teacup-without-handle telephone-receiver thumbs-up ticket tiger-face tokyo-tower top-hat trackball
    tram trident-emblem trolleybus tropical-drink tumbler-glass two-hump-camel vertical-traffic-light
    victory-hand video-camera video-game videocassette volleyball wastebasket water-buffalo water-wave
    waving-hand white-flower wilted-flower wind-chime womans-boot womans-clothes womans-hat womans-sandal
    world-map writing-hand
    """
)

KINDS: tuple[str, ...] = tuple(sorted({*world.BASE_SUBJECTS, *_FORMER_STRANGERS, *_MORE}))
"""What the base model knows; every base style draws all of them."""

ALL_STRANGERS: tuple[str, ...] = STRANGERS["development"] + STRANGERS["test"]
SUBJECTS: tuple[str, ...] = KINDS + ALL_STRANGERS
"""Everything that the judge of kinds names."""
