"""Every constant that decides something, with its unit and reason; measured: docs/decisions.md says where.

A name is used once. Constants of pictures, and names of columns, stay where they are used.
"""

from __future__ import annotations

# --- what is accepted --------------------------------------------------------------------------------------------

MIN_CELLS = 32  # of a modality or a batch of samples: the least training batch
MIN_LINKS = 3  # fewer linked features make no correlation
MIN_PAIRS = 3  # fewer known pairs are no coordinates
MIN_SHARED = 50  # equal names, and half of the smaller modality, that make one space of both
MAX_LINK_TABLE = 500_000  # links: a column that gives more does not name genes
NEARLY_ONE_TO_ONE = 2.0  # links per feature of the side with fewer, at most, of columns that links="auto" may take
MAX_KEY_LINKS = 60  # by one key with 3 or more features on both sides (20 genes × 3 antibodies): it is a filler
MIN_FILLED = 3  # features with a filler on both sides; two may be isoforms of a gene, and antibodies against them
MANY_KEY_LINKS = 20  # by one key with several features on both sides, from which on it is named in a warning
MIN_NAME = 2  # characters of the entries of a column that links="auto" may take: one is the letter of a cluster
PANEL_SHARE = 0.5  # of the features that are known antibodies, in a panel of them
MAX_PANEL = 1_000  # features of a panel of antibodies; the largest sold have 300
MAX_AFFIXES = 3  # that names have before or behind what they name
MAX_LINKS_USED = 5_000  # between different features; more cost memory (50 bytes a cell and link), no more accurate
MAX_SEED = 2**32 - 1  # what scikit-learn takes
MAX_WRITTEN = 200_000_000  # cells × features of one mapped array
SHOWN_AFTER = 2.0  # seconds, from which on a loop shows its progress
SAMPLED = 64  # cells, and features, whose values are recorded: a change of units changes nearly all of them
SECTION_CELLS = 3  # of a section on average: a column of more values is a number or a name of cells
COMPARED_PLACES = 5_000  # cells whose places say whether groups of them lie in one frame
FRAME_GAP = 3.0  # nearest-neighbour distances between groups that are no parts of one frame
SAME_PLACES = 0.2  # of the cells that lie exactly where another one does: sections drawn over one another
MAX_FRAMES = 50  # sections whose coordinates a generator gives: each is 2 or 3 more columns of all cells
UNITS_TOLERANCE = 1e-3  # of a value and the mean one, beyond which it has changed: rounding is 1e-7

# --- model space -------------------------------------------------------------------------------------------------

LINKED_STEPS = 1  # of smoothing where links or pairs decide: cells keep much of what they are (measured)
SHAPE_STEPS = 3  # where shapes decide: these are matched over what many cells share, on graphs of plain PCs (measured)
SMOOTHING_NEIGHBORS = 15  # of a cell in the graph; also labelled cells whose labels a cell without one gets
WIDTH_NEIGHBOR = 5  # of a cell, whose distance is the bandwidth of its kernel, and says how far out a new cell is
MAX_REFERENCE = 20_000  # training cells of a modality that the model keeps to smooth new cells with
COPY_DISTANCE = 1e-3  # of the bandwidth, within which a new cell is a training cell once more, and not its neighbour
MAX_MISSING = 0.5  # of the variance of model space that features new cells lack may carry
STORED_CHUNK = 512  # cells, and features, of a chunk of mapped values in a file: 1 MB
UNITS_FACTOR = 2.0  # between mean values of new and of training cells, from which on they are taken for other units
TRANSLATED_CELLS = 512  # new cells at one time: their distances to all training cells are 80 MB
N_PCS = 50  # of model space and of neighbour graphs
N_DISPERSED = 2_000  # features that enter a PCA, next to the linked ones
EXACT_NEIGHBORS_BELOW = 20_000  # cells; exact search takes 3 s there, and importing pynndescent takes longer
NOISE_TOLERANCE = 1e-3  # of singular vectors of permuted values: they have no gap, exact ones take ten times as long
MAX_BATCH_SCALE = 5.0  # a feature that hardly varies in one batch is not blown up beyond
MIN_LABEL_PURITY = 0.5  # of a label among neighbours, half-way from chance to perfect, to be smoothed inside
LABEL_PURITY_CELLS = 5_000  # on which purity is measured
DECODER_RIDGE = 1.0  # of the mean variance: minor components predict little of features outside the PCA
DECODER_RIDGES = (10.0, 3.0, 1.0, 0.3, 0.1)  # among which left-out cells choose in a shared space (measured)
CONSTANT_SD = 1e-6  # of a feature's mean: what float32 rounding leaves of a constant one
LEFT_OUT_CELLS = 5_000  # that are left out in turn to choose
BLOCK = 256  # columns that are dense at one time
CHUNK = 2**18  # values of a matrix larger than memory that are read at one time: 2 MB, and several copies of them
DENSE = 2**20  # values of such a matrix that are dense at one time
CHUNKS_AHEAD = 4  # rows of chunks of dask that are computed at one time
AHEAD = 2**25  # values, zeros included, that these may have: of large chunks only one row
CHUNKS_SENT = 16  # that a worker of a dask cluster gets at one time: 32 MB
WORKERS_WITHIN = 30  # seconds, in which a dask cluster without workers has to start one
BLOCKED_FROM = 20_000  # cells from which on all are gone through in blocks: sums round otherwise, memory is less
PCA_CELLS = 50_000  # drawn at random, from which principal axes of many features are learnt where there are more
BLOCK_ROWS = 4_096  # of such a block: what it holds stays in the processor's cache
BLOCK_VALUES = 2**24  # entries of such a block of columns, 128 MB in double precision

# --- imputation of features that only the target has ---------------------------------------------------------------

MIXED_CELLS = (1, 4, 16)  # summed in a mixture; the regressions learnt on each count alike (measured)
N_MIXTURES = 2_000  # of each number of cells
MIXTURE_CLUSTERS = 30  # of the target's cells, from which a mixture draws
MIXTURE_SPREAD = 0.3  # Dirichlet concentration per cluster: a few clusters make a mixture
MAX_SD = 10.0  # beyond which a standardised log share is an outlier
MAX_RATE = 10.0  # by which the source catches a feature more often or more rarely than the target
IMPUTATION_PCS = 30  # of thinned mixtures that a regression reads
IMPUTATION_CELLS = 20_000  # of the source, from which rates, depth and moments are learnt
IMPUTED_SHARE = 0.6  # of the regressions in the mapped value; the rest is the map's (measured)

# --- couplings ---------------------------------------------------------------------------------------------------

LANDMARKS = 300  # of a modality
SHAPE_LANDMARKS = 150  # where shapes decide: a Gromov-Wasserstein step is cubic in them
EPSILON = 0.02  # entropic regularisation, in units of the mean cost
SINGLE_PRECISION_FROM = 2**20  # entries of a kernel, from which on going through memory takes the time
SINGLE_PRECISION_ABOVE = 1e-20  # largest entry that every row and column must have for it: its smallest number is 1e-38
STACKED_VALUES = 2**17  # entries of a stack of kernels that are scaled at one time: 1 MB, the processor's own cache
MARGINAL_WEIGHT = 1.0  # KL weight of the marginals, in units of the mean cost: lower ones flag fewer orphans (measured)
SHARPENING = 2  # power of a plan's entries before landmarks are averaged: about half of ε (measured)
PLAN_ENTRIES = 32  # kept per cell
REWEIGHTING_ROUNDS = 3  # of weighting links by cross-modal agreement
PAIRS_DECIDE = 100  # known pairs from which on they place cells without the shapes (measured)
MAX_PROFILES = 300  # known pairs that serve as coordinates
PAIR_WEIGHT = 20.0  # of a known pair in canonical variates, where cells with their anchors count 1
N_CANONICAL = 20  # canonical variates
FORBIDDEN_COST = 10.0  # between different labels, in units of the mean cost of everything else
HIDING_SHARE = 0.05  # of cells without a label in which a label may hide
STRAIGHT_RIDGE = 0.1  # penalty, of the mean variance, of the regression of anchors on cells (measured)

FUSED_WEIGHT = 7 / 3  # of a linear cost of mean 1 beside shapes: a fused problem with α = .3
PROXIMAL_STEP = 2.0  # 1 / ε of a proximal step: larger ones outrun the Sinkhorn iterations between them
N_STARTS = 100  # of the search for minima, for each family of metrics
N_POLISHED = 25  # of each family of metrics
DISTINCT_PLANS = 0.8  # |T − T'|₁ above which two plans are different answers
N_RIVALS = 5  # next best couplings that are kept
DISTORTED = 0.03  # Gromov-Wasserstein cost (rms distortion 17 %) above which a plan is only roughly right
MANY_DIMENSIONS = 10  # of both sides from which on canonical variates say more than a distorted plan
N_CANDIDATES = 12  # of the cheapest minima that are compared: more do not help (measured)
MINIMA_CELLS = 1_000  # of each side by which minima are compared
MINIMA_ROUNDS = 2  # of canonical variates and plans from them
LEAST_MISMATCH = 0.01  # that counts: over a single variate every cell has perfect partners, whatever the plan

# --- networks and training ---------------------------------------------------------------------------------------

# adversarial and geometry: measured; identity only in a shared space; consistency only of three modalities or more, off
LOSS_WEIGHTS = {
    "adversarial": 0.5, "cycle": 1.0, "anchors": 5.0, "links": 1.0, "geometry": 0.1, "identity": 10.0, "consistency": 0.0,
}  # fmt: skip
MAX_STEPS = 500  # of training: more gain nothing but two-sample AUC (measured)
BATCH_SIZE = 128  # cells of each modality per step: as good as 256 on eight sets, at .6 of the time
LEARNING_RATE = 2e-3  # of Adam, warmed up over 50 steps, decaying over the last 40 %
COSTLY_EVERY = 4  # steps between evaluations of geometry and gradient penalty, which then count fourfold
PENALTY_WEIGHT = 0.1 / 2  # γ / 2 of the gradient penalty
PENALTY_ROWS = 64  # measured cells on which it is taken
RECORD_EVERY = 10  # steps per history entry
CHECK_EVERY = 50  # steps between looks at the validation cells
STEP_TIMEOUT = 30  # seconds that a process waits in a step for the others before it gives up
JOIN_TIMEOUT = 300  # before the first step: others may still be reading
CDIST_BUFFER = 2**31  # numbers in the buffer of PyTorch's slope of distances on a GPU, which it counts in 32 bits
STEPS_BEFORE_GRAPH = 3  # of each kind on a GPU before its kernels are recorded: PyTorch's own advice
BAD_STEPS = 10  # non-finite values of a term in a row that end the training
VALIDATION_SHARE = 10  # one cell in so many takes no part in the training
MAX_VALIDATION = 500  # cells
N_EIGENVECTORS = 12  # of a batch's geometry that are compared
SUBSPACE_WIDTH = 1e-3  # in the gradient 1 / g becomes g / (g² + width²)
EIGVEC_WIDTH = 1e-2  # the same for single eigenvectors
START_RIDGE = 1e-2  # penalty, of the mean variance, of the linear start of a generator
METRIC_RIDGE = 0.1  # penalty, of the mean variance, of the joint embedding's metric (measured)
LEAST_RELIABILITY = 0.02  # that every axis keeps, so that model space can be had back from the embedding
COORDINATE_SD = 10.0  # of coordinates beside features of sd 1 (measured)
MEMORY_NEIGHBORS = 15  # of a cell among those that the barycentric map remembers
REMEMBERED_CELLS = 10_000  # that it keeps per direction
MAP_CHUNK = 8_192  # cells mapped at one time

# --- autoencoders ------------------------------------------------------------------------------------------------

MAX_ZSCORE = 10.0  # of a feature as an autoencoder reads it; as published
MAX_HIDDEN = 512  # of a hidden layer, unless `hidden="published"`: 2,613² weights a layer take a second a step
JAMIE_EPOCHS = 2_500  # before JAMIE's training may end; the divergence has half of its weight at half of them
LABEL_COPIES = 10  # of a cell's label that a conditional critic of CMAE reads, as published
JAMIE_PATIENCE = 500  # epochs without a better batch until it ends
MAX_COVERED = 0.9  # of the cells of the larger modality in known pairs, above which JAMIE infers no correspondence
PAIRED_SHARE = 0.8  # of JAMIE's batches that are known pairs
N_CHECKS = 200  # looks at the held-out cells in a training, at most, and rows of the history

BASELINE_WIDTH = (
    15  # of the space of baselines that have no width of their own: canonical variates are 2-15 in the field
)
CCA_RIDGE = 0.1  # penalty, of the mean variance, of canonical variates of few pairs

MATCHING_WIDTHS = (
    40,
    15,
)  # components of a modality, and of a panel of at most 50 features (as the next ones, published)
MATCHING_RANK = 25  # of linked features
MATCHING_VARIATES = 20  # canonical variates that matches are made by
MATCHING_WIDTH = 15  # of the joint space
# where links are strong, and where they are weak, as published
MATCHING_OWN = (0.7, 0.3)  # of a cell; the rest is the mean of its cluster
MATCHING_ROUNDS = (3, 1)  # of canonical variates and matches
MATCHING_DROPPED = (0.3, 0.5)  # of the matches, those that correlate least
MATCHING_CLUSTERS = 30  # by k-means, in which cells are smoothed; published: Leiden at resolution 2
ASSIGNED_CELLS = 3_000  # of either side in one assignment: 72 MB and seconds; published 5,000 × 15,000

FOUND_CLUSTERS = 50  # of each side over which links are looked for, at least 20 cells each
FOUND_PAIRS = 300  # known pairs that are rows beside clusters
FOUND_COMPONENTS = 20  # of each side from which canonical variates are made
FOUND_VARIATES = 10  # at most a fifth of the rows
FOUND_SHUFFLED = 100  # orders of the second side's rows that variates and scores must exceed
FOUND_SCORE = 0.5  # of features that are linked
FOUND_ROUNDS = 3  # of couplings and links
MAX_FOUND = 100  # links

# --- evidence ----------------------------------------------------------------------------------------------------

GRADES = ("not identifiable", "weak", "in part", "supported")  # of verdicts, in order
ALPHA = 0.01  # of a verdict: better than every one of 99 shuffled tables
N_SHUFFLED = 99  # shuffled tables
N_SHUFFLED_REST = 20  # of links of which no coupling is made: pooled over links
LEAST_CEILING = 0.05  # of a link, below which a share of it says nothing
CEILING_CELLS = 2_000  # of each half of a modality that is aligned with the other half
N_NAMED = 5  # features that a verdict names
FOLDS = 5  # in which links and pairs are held out
MIN_TESTED_LINKS = 10  # from which on the rest can stand for all of them when some are held out
MIN_TESTED_PAIRS = 5  # fewer can be shuffled in too few ways
MAX_TESTED_LINKS = 300  # more change the verdict nowhere
MAX_TESTED_PAIRS = 100  # held out; more change the verdict nowhere
MAX_TESTED_CELLS = 2_000  # among which a partner is looked for
MIN_CORRELATION = 1 / 3  # of held-out links less the standard error; tissues that share housekeeping reach .25
MIN_FEATURES = 3  # with q < .05 by themselves, of an alignment that is supported in part
MIN_SHARE = 0.2  # of the noise ceiling that their mean must reach, and what is weak does not (measured)
EVIDENT = 0.05  # q of a feature or pair that counts
MAX_NEARER_IN_PART = 0.4  # mean share of cells nearer than the held-out partner, of pairs that support in part
MAX_DEPTH = 0.5  # mean |correlation| of mapped features with depth, from which on depth is the main content
MAX_NEARER = 0.3  # mean share of cells nearer than the held-out partner; chance is .5
MIN_CONTRADICTION = 10  # pairs that outweigh links
SWAPPABLE = 1 / 3  # swap gap: evidence against a swap twice as large as that for it
CLOSE_COST = 0.05  # relative cost gap of rivals that count
DIFFERENT_ANSWER = 0.5  # total variation between two answers for one landmark
COARSE_LANDMARKS = 100  # on which hundreds of couplings are made again in seconds
COARSE_ITERATIONS = 100  # of Sinkhorn there
PLAN_BATCH = 4_000_000  # plan entries held at a time
N_POPULATIONS = 10  # Ward clusters of landmarks where there are no labels
MIN_SCORED = 50  # held-out cells; fewer score too coarsely
OVERLAP_NEIGHBORS = 20  # of a cell whose overlap is measured
SCIB_NEIGHBORS = (90, 15)  # of a cell in LISI and in graph connectivity, as scib-metrics' own benchmark takes
CYCLE_NEIGHBORS = 5  # of a cell in the other modality, and of each of these back, in a round trip by an embedding
MIN_RESTARTS = 4  # fewer have no largest mode
SHORT_TRAINING = 300  # steps of a restart
PROBED_CELLS = 1_000  # whose images are compared between restarts
SAME_MAP = 0.5  # similarity of images above which two restarts are one map

# --- what follows from an alignment ------------------------------------------------------------------------------

PLAN_NEIGHBORS = 30  # cells whose plans are averaged for uncertainty: plans alone are too sure (measured)
CALIBRATION_FOLDS = 3  # every one costs a coupling; 5 where fewer than 10 links would be left
MAX_CALIBRATED = 500  # links that are held out and scored
IGNORED_NOISE = 0.01  # median score below which generators ignore their noise
MIN_DETECTION = 0.01  # share of cells in which a feature must be seen to be scored
LOW_MEAN = 0.1  # quantile of the features' means below which they are not scored
PANEL_FEATURES = 50  # of a smaller modality, a chosen panel, no tenth is lowly expressed
CORRELATION_ALPHA = 0.05  # of presence, and of the one-sided limit for absence
EVIDENCE_Q = 0.05  # of the held-out correlation of a gene that may have verdicts
PERMUTATIONS = 20  # of a null; pooled over features
RESAMPLES = 200  # of cells, for limits
POOL_CELLS = 15  # of the target in a pool over which genes are correlated: single cells are noise, larger pools populations (measured)
N_POOLINGS = 5  # k-means runs whose correlations are averaged
MAX_POOLS = 500  # more are no more accurate
JACKKNIFED = 6  # parts of the cells, which are left out alone and by twos for the error of a correlation
FEW_POOLS = 20  # below which that error is Fisher's over the pools at least
PRESENT_CORRELATION = 0.3  # that cells must show at least for a novel one (measured)
PRESENT_ALPHA = (
    0.003  # of the limit that must reach it: most correlations are lower, so that few in a hundred are many (measured)
)
ABSENT_ALPHA = 0.025  # of the limit below which cells lack a correlation (measured)
N_TOP = 700  # strongest correlations at most: of 20,092 genes in the paper
MIXTURE_ROUNDS = 5  # of a spot's composition and the rates of features in turn (measured; more change nothing)
MIXTURE_STEPS = 10  # of expectation maximisation in each
MIXTURE_RATE = 30.0  # by which spots catch a feature more often or more rarely than cells (measured)
VOTES = 15  # partners that vote for a cell, and neighbours of its own whose votes are averaged
UNMATCHED_HALF = 0.1  # unmatched share at which a cell is as likely to have no partner as to have one
RIVAL_CHANCE = 0.5  # that a rival coupling of nearly the same cost is the right one
MAX_CODES = 100  # different whole numbers up to which these are labels, of three cells or more on average
MIN_PROBABILITY = 0.5  # a label or value that is less likely than not is left out
PLACE_NEIGHBORS = 20  # real spots, of which the most central one is taken (measured)
LANCZOS_ROUNDS = 100  # of a spectral clustering; a curve of 10,000 cells takes less than 50
PATH_NODES = 64  # Gauss-Legendre nodes of integrated gradients
PATH_BATCH = 16_384  # points of the path that are mapped at one time
SCORED_FEATURES = 500  # of a modality, drawn at random, of which an evaluation is the mean
EMBEDDED_NEIGHBORS = 15  # of the target, in an embedding, whose values predict those of a cell that no method mapped
BASELINE_NEIGHBORS = 5  # of a cell whose partners' values predict its own, as published
ATTRIBUTION_GAP = 0.05  # of the predictions' differences that attributions may miss without a warning
