"""The 80 objects of COCO (arXiv:1405.0312) and common words for them: name first, then its synonyms, in the singular.

A line that starts with ``-`` lists phrases that hold the name of an object and are none.
"""

COCO_OBJECTS = """
person, man, woman, boy, girl, child, kid, baby, toddler, infant, adult, guy, lady, gentleman, human, pedestrian, people, crowd, player, skier, snowboarder, surfer, skateboarder, skater, rider, cyclist, biker, motorcyclist, bicyclist, driver, batter, catcher, pitcher, umpire, referee, athlete, chef, cook, waiter, waitress, worker, farmer, soldier, policeman, officer, police officer, fireman, tourist, student, teacher, bride, groom, couple, mother, father, mom, dad, son, daughter, brother, sister, family, team, fisherman, passenger, businessman, friend, teenager, spectator, audience, shopper, customer, swimmer, runner, jogger, dancer, musician, singer, photographer, vendor, salesman, cowboy, jockey, goalie
bicycle, bike, tricycle, unicycle
car, automobile, sedan, suv, taxi, cab, minivan, van, jeep, hatchback, limousine, limo, convertible, police car, station wagon, sports car
motorcycle, motorbike, moped, motor bike, motor cycle, dirt bike, scooter, motor scooter, vespa
airplane, plane, aeroplane, aircraft, jet, jetliner, airliner, biplane, jumbo jet, seaplane, fighter jet, passenger plane, passenger jet
bus, minibus, double decker, trolley bus, coach bus, school bus
train, locomotive, tram, streetcar, subway, steam engine, trolley car, freight train, commuter train
truck, lorry, pickup, pickup truck, fire truck, firetruck, fire engine, tow truck, semi, eighteen wheeler, dump truck, tractor trailer
boat, ship, sailboat, canoe, kayak, yacht, ferry, rowboat, raft, motorboat, speedboat, tugboat, gondola, barge, dinghy, vessel, cruise ship, catamaran
traffic light, traffic signal, stoplight, stop light, traffic lamp
fire hydrant, hydrant
stop sign
parking meter
bench, pew
bird, pigeon, seagull, gull, duck, duckling, goose, gosling, swan, parrot, owl, eagle, hawk, sparrow, crow, ostrich, flamingo, penguin, rooster, hen, peacock, pelican, heron, stork, dove, parakeet, robin, cockatoo, hummingbird, vulture, falcon, egret, finch
cat, kitten, kitty, tabby, feline
dog, puppy, pup, hound, terrier, poodle, retriever, labrador, bulldog, dachshund, collie, pug, corgi, dalmatian, german shepherd, chihuahua, beagle, canine, husky, doggy, doggie
horse, pony, foal, colt, mare, stallion, racehorse
sheep, lamb, ram, ewe
cow, cattle, bull, calf, ox, oxen, heifer
elephant
bear, polar bear, panda, grizzly, grizzly bear, cub, bear cub, panda bear
zebra
giraffe
backpack, rucksack, knapsack, back pack, book bag, bookbag
umbrella, parasol
handbag, purse, hand bag, pocketbook, clutch bag
tie, necktie, bow tie, bowtie
suitcase, luggage, suit case, briefcase, baggage
frisbee, flying disc, flying disk, disc golf disc
skis, ski
snowboard, snow board
sports ball, ball, baseball, football, basketball, tennis ball, soccer ball, volleyball, beach ball, rugby ball, golf ball
kite, parasail
baseball bat, bat
baseball glove, mitt, catcher's mitt, baseball mitt
skateboard, skate board, longboard
surfboard, surf board, boogie board, bodyboard, paddleboard, paddle board
tennis racket, racket, racquet, tennis racquet
bottle, beer bottle, wine bottle, water bottle
wine glass, wineglass, champagne glass, goblet, wine goblet
cup, mug, teacup, coffee cup, coffee mug, tea cup, tumbler
fork
knife, butter knife, steak knife, pocket knife
spoon, teaspoon, tablespoon
bowl
banana, plantain
apple
sandwich, burger, hamburger, cheeseburger, panini, sub sandwich, grilled cheese
orange, tangerine, mandarin, clementine
broccoli
carrot
hot dog, hotdog, corn dog, chili dog
pizza, pizza pie
donut, doughnut
cake, cupcake, cheesecake, shortcake, wedding cake, birthday cake, coffeecake
chair, armchair, stool, recliner, arm chair, seat, bar stool, rocking chair, lawn chair
couch, sofa, loveseat, futon, love seat, settee
potted plant, houseplant, house plant, pot plant, flower pot, flowerpot
bed, bunk bed, mattress
dining table, table, desk, kitchen table, dinner table, coffee table
toilet, urinal, commode, lavatory
tv, television, television set, tv set, tele, flat screen, flatscreen
laptop, laptop computer, notebook computer, macbook, netbook
mouse, computer mouse
remote, remote control, controller, wii remote, game controller, wiimote
keyboard, computer keyboard
cell phone, cellphone, mobile phone, phone, smartphone, telephone, iphone, smart phone, cellular phone
microwave, microwave oven
oven, stove, stovetop, stove top oven, range oven
toaster
sink, wash basin, washbasin, basin
refrigerator, fridge, freezer, icebox
book, novel, textbook, paperback
clock, alarm clock, clock tower, wall clock
vase, urn
scissors, scissor, shears
teddy bear, teddy, stuffed bear, toy bear
hair drier, hair dryer, hairdryer, blow dryer, blowdryer
toothbrush, tooth brush
- train track, train station, train platform, railroad track, bus stop, bus station, bus terminal, boat dock, bike lane, bike rack, bike path, car park
- bath mat, baseball field, baseball game, baseball player's cap, baseball uniform, baseball diamond, football field, football game, basketball court, basketball game
- baseball stadium, tennis ball machine, volleyball court, toilet paper, toilet seat, toilet brush, table cloth, table top, table tennis, bed sheet, bed spread, bed room
- book shelf, book case, book store, dog house, bird house, bird bath, bird cage, dog food, cat food, hot sauce, cup holder, clock face, fire place, keyboard instrument
- phone booth, telephone pole, phone pole, telephone booth, pizza box, pizza oven, pizza cutter, cake stand, ski slope, ski lift, ski pole, ski resort, ski boot, kite string
- baby elephant, baby giraffe, baby zebra, baby cow, baby bear, baby horse, baby sheep, baby bird, baby duck, baby goat, baby lamb, adult elephant, adult giraffe, adult zebra
- adult bear, adult sheep, orange juice, apple juice, apple cider, carrot cake
"""
