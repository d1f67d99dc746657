"""Which kinds of thing the base model knows, and which it must never meet.

The lists are explicit, so that the splits can be read and cannot drift.
"""

from __future__ import annotations


def listed(names: str) -> tuple[str, ...]:
    """Names written with spaces between them."""
    return tuple(names.split())


def words(name: str) -> str:
    """A name as prompts write it: ``hot-air-balloon`` is "hot air balloon"."""
    return name.replace("-", " ")


STRANGERS: dict[str, tuple[str, ...]] = {
    "development": listed("strawberry penguin cactus guitar snail mushroom pineapple frog"),
    "test": listed("tulip octopus watermelon koala trumpet turtle hamburger elephant"),
}
"""Subjects that the base model does not know even by kind: the hard case, for each half."""

KINDS: tuple[str, ...] = listed(
    """
    airplane alarm-clock alembic alien alien-monster ambulance american-football amphora anchor ant
    articulated-lorry artist-palette automobile avocado baby-bottle baby-chick backpack bacon badminton
    baguette-bread balance-scale balloon banana bank barber-pole baseball basketball bat bathtub battery bear
    bed beer-mug bell bento-box bicycle bikini bird birthday-cake black-nib blossom blowfish blue-book boar
    bomb bookmark books bottle-with-popping-cork bouquet bow-and-arrow bowling boxing-glove bread briefcase
    bug building-construction bullet-train burrito bus bus-stop butterfly camel camera candle candy canoe
    card-index-dividers carousel-horse carp-streamer carrot castle cat cat-face cheese-wedge chequered-flag
    cherries cherry-blossom chestnut chicken chipmunk chocolate-bar christmas-tree church cigarette
    circus-tent clamp clapper-board classical-building clipboard closed-umbrella cloud clown-face
    cocktail-glass coffin comet computer-disk computer-mouse confetti-ball control-knobs cooked-rice cookie
    cooking couch-and-lamp cow cow-face cowboy-hat-face crab crayon credit-card crescent-moon cricket
    crocodile croissant crossed-swords crown crystal-ball cucumber curry-rice custard cyclone dagger dango
    deciduous-tree deer delivery-truck derelict-house desert-island desktop-computer dog dog-face dolphin door
    doughnut dove dragon dragon-face dress droplet drum duck eagle ear ear-of-corn egg eggplant electric-plug
    envelope evergreen-tree ewe eye eyes factory fallen-leaf fax-machine ferris-wheel ferry field-hockey
    file-cabinet film-frames film-projector fire fire-engine fireworks fish fish-cake-with-swirl fishing-pole
    flag-in-hole flashlight flexed-biceps floppy-disk footprints fork-and-knife fountain fountain-pen
    four-leaf-clover fox framed-picture french-fries fried-shrimp fuel-pump full-moon funeral-urn game-die
    gear gem-stone ghost glasses globe-showing-americas glowing-star goal-net goat goblin gorilla
    graduation-cap grapes green-apple green-salad hammer hammer-and-wrench hamster handbag hatching-chick
    headphone helicopter herb hibiscus high-heeled-shoe high-voltage honey-pot honeybee
    horizontal-traffic-light horse horse-face hospital hot-beverage hot-dog hot-pepper hotel hourglass-done
    house house-with-garden ice-cream ice-hockey ice-skate jack-o-lantern japanese-castle japanese-dolls jeans
    joker joystick key keyboard kick-scooter kimono kitchen-knife kiwi-fruit label lady-beetle laptop
    last-quarter-moon-face ledger lemon leopard level-slider light-bulb lion lipstick lizard locked locomotive
    lollipop loudspeaker love-letter magnifying-glass-tilted-left mans-shoe mantelpiece-clock maple-leaf
    martial-arts-uniform meat-on-bone megaphone melon memo menorah microphone microscope milky-way minibus
    moai mobile-phone money-bag monkey monkey-face mosque motor-boat motor-scooter motorcycle mount-fuji
    mountain mouse mouse-face mouth movie-camera musical-keyboard musical-note musical-score nail-polish
    name-badge national-park necktie newspaper nose notebook nut-and-bolt oden office-building ogre oil-drum
    ok-hand old-key oncoming-automobile oncoming-bus open-book open-file-folder optical-disk owl ox package
    paintbrush palm-tree pancakes panda paperclip party-popper passenger-ship paw-prints peach peanuts pear
    pen pencil performing-arts pick pig pig-face pile-of-poo pill pine-decoration ping-pong pizza police-car
    poodle pool-8-ball popcorn post-office postal-horn postbox pot-of-food potato prayer-beads printer purse
    pushpin rabbit rabbit-face racing-car radio railway-car rainbow ram rat red-apple red-heart
    red-paper-lantern reminder-ribbon rescue-workers-helmet rhinoceros ribbon rice-ball rice-cracker ring
    robot rocket roller-coaster rooster rose rosette rugby-football running-shirt running-shoe sailboat sake
    satellite satellite-antenna saxophone school scissors scorpion scroll seat seedling shallow-pan-of-food
    shark shaved-ice sheaf-of-rice shield shinto-shrine ship shooting-star shopping-bags shopping-cart
    shortcake shower shrimp skis skull slot-machine small-airplane snake snow-capped-mountain snowflake
    snowman-without-snow soccer-ball soft-ice-cream spaghetti sparkler speech-balloon speedboat spider
    spider-web spiral-calendar spiral-shell spoon sport-utility-vehicle spouting-whale squid stadium star
    statue-of-liberty steaming-bowl stop-sign stopwatch studio-microphone stuffed-flatbread sun
    sun-behind-cloud sunflower sunglasses sushi syringe t-shirt taco tangerine taxi teacup-without-handle
    telephone telephone-receiver telescope television tennis tent thermometer thumbs-up ticket tiger
    tiger-face toilet tokyo-tower tomato top-hat tornado trackball tractor train tram trident-emblem
    trolleybus trophy tropical-drink tropical-fish tumbler-glass turkey two-hump-camel umbrella unicorn
    vertical-traffic-light victory-hand video-camera video-game videocassette violin volcano volleyball
    wastebasket watch water-buffalo water-wave waving-hand whale wheelchair-symbol white-flower wilted-flower
    wind-chime wine-glass wolf womans-boot womans-clothes womans-hat womans-sandal world-map wrapped-gift
    wrench writing-hand
    """
)
"""What the base model knows, in alphabetical order; every base style draws all of them."""

ALL_STRANGERS: tuple[str, ...] = STRANGERS["development"] + STRANGERS["test"]
SUBJECTS: tuple[str, ...] = KINDS + ALL_STRANGERS
"""Everything that the judge of kinds names."""
