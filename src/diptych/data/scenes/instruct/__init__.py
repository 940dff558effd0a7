"""Instructions about scenes with exact truth: ``instruct:scenes:small?kinds=count,refuse&turns=3``.

| kind | asks | answers |
|---|---|---|
| ``yes-no`` | is there a fox? is the fox red? are there exactly two foxes? is the fox left of the key? | yes, no |
| ``count`` | how many foxes are there? count left and right | 2 left + 1 right = 3 |
| ``refuse`` | what colour is the fox? | red, or "there is no fox" |
| ``correct`` | the fox is red. how many things are there? | right; two, or "no, the fox is blue; two" |
| ``box`` | where is the fox? answer with its box | [12, 40, 55, 83] |
| ``follow`` | which is further left, the fox or the key? what colour is it? and the other? | the fox; red; blue |
| ``which`` | which picture shows a red fox? | the second picture |
| ``differs`` | what differs between the two pictures? | the fox is red in the first picture and blue in the second |

Samples 2 k and 2 k + 1 are twins: the same questions about two scenes that differ in one fact, or about the same pictures in
another order, so that each question has another answer. Of any question the answers are therefore balanced, not only of any kind: a
model that does not see the picture is right about one of two twins at most (as the complementary pairs of VQAv2, Goyal et al.
2017, but exactly).

change.py: two scenes that differ in one fact. single.py, several.py: questions about one picture, and about several.
source.py: samples.
"""
