package bench

import (
	"math"
	"math/rand/v2"
	"slices"
)

// Interval is an estimate with its 95 % bounds.
type Interval struct {
	Low    float64 `json:"low"`
	Middle float64 `json:"middle"`
	High   float64 `json:"high"`
}

// resamples is the number of bootstrap samples, confidence the share of them inside the bounds.
const (
	resamples  = 10_000
	confidence = 0.95
)

// Median returns the middle of v, the mean of the two middle values of an even
// number; 0 of nothing.
func Median(v []float64) float64 {
	return sortMedian(slices.Clone(v))
}

// sortMedian sorts v and returns its median.
func sortMedian(v []float64) float64 {
	n := len(v)
	if n == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// quantile returns the q-quantile of sorted values, interpolated (R's type 7).
func quantile(sorted []float64, q float64) float64 {
	at := q * float64(len(sorted)-1)
	low := int(math.Floor(at))
	high := min(low+1, len(sorted)-1)
	return sorted[low] + (at-float64(low))*(sorted[high]-sorted[low])
}

// bootstrap returns the percentile interval of a figure that draw computes from
// samples drawn with replacement. The seed is fixed: the same runs give the same
// report.
func bootstrap(middle float64, draw func(*rand.Rand) float64) Interval {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // samples that can be repeated
	figures := make([]float64, resamples)
	for i := range figures {
		figures[i] = draw(random)
	}
	slices.Sort(figures)
	tail := (1 - confidence) / 2
	return Interval{quantile(figures, tail), middle, quantile(figures, 1-tail)}
}

func resample(random *rand.Rand, from, into []float64) []float64 {
	for i := range into {
		into[i] = from[random.IntN(len(from))]
	}
	return into
}

// MedianInterval returns the median of v and its bootstrap interval.
func MedianInterval(v []float64) Interval {
	if len(v) == 0 {
		return Interval{}
	}
	sample := make([]float64, len(v))
	return bootstrap(Median(v), func(r *rand.Rand) float64 { return sortMedian(resample(r, v, sample)) })
}

// RatioInterval returns the ratio of the medians of a and b and its bootstrap
// interval; zero when either has nothing or b's median is 0.
func RatioInterval(a, b []float64) Interval {
	if len(a) == 0 || len(b) == 0 || Median(b) == 0 {
		return Interval{}
	}
	sa, sb := make([]float64, len(a)), make([]float64, len(b))
	return bootstrap(Median(a)/Median(b), func(r *rand.Rand) float64 {
		return sortMedian(resample(r, a, sa)) / sortMedian(resample(r, b, sb))
	})
}

// maxExact bounds the size of both samples together for which the p-value is exact.
const maxExact = 60

// MannWhitney returns the two-sided p-value of the hypothesis that a and b come from
// one distribution: exact, ties included, for samples of up to maxExact values, by
// the normal approximation with correction for ties and continuity beyond. Without
// values on a side it is 1.
func MannWhitney(a, b []float64) float64 {
	if len(a) == 0 || len(b) == 0 {
		return 1
	}
	ranks, ties := doubledRanks(a, b)
	sum := 0
	for _, r := range ranks[:len(a)] {
		sum += r
	}
	expected := len(a) * (len(ranks) + 1) // twice the expected sum of a's ranks
	distance := sum - expected
	if distance < 0 {
		distance = -distance
	}
	if len(ranks) > maxExact {
		n, m, all := float64(len(a)), float64(len(b)), float64(len(ranks))
		variance := n * m / 12 * (all + 1 - ties/(all*(all-1)))
		if variance == 0 {
			return 1
		}
		z := max(0, float64(distance)/2-0.5) / math.Sqrt(variance)
		return math.Erfc(z / math.Sqrt2)
	}
	return exactShare(ranks, len(a), expected, distance)
}

// exactShare returns which share of all choices of count ranks has a sum at least
// distance away from what is expected.
func exactShare(ranks []int, count, expected, distance int) float64 {
	total := 0
	for _, r := range ranks {
		total += r
	}
	ways := make([][]float64, count+1) // ways[k][s]: choices of k ranks with sum s
	for k := range ways {
		ways[k] = make([]float64, total+1)
	}
	ways[0][0] = 1
	for _, r := range ranks {
		for k := count; k >= 1; k-- {
			for s := total; s >= r; s-- {
				ways[k][s] += ways[k-1][s-r]
			}
		}
	}
	var far, all float64
	for s, n := range ways[count] {
		all += n
		if s-expected >= distance || expected-s >= distance {
			far += n
		}
	}
	return far / all
}

// doubledRanks returns twice the mid-rank of each value, a's before b's, and the sum
// of t³-t over groups of t equal values.
func doubledRanks(a, b []float64) (ranks []int, ties float64) {
	all := append(slices.Clone(a), b...)
	order := make([]int, len(all))
	for i := range order {
		order[i] = i
	}
	slices.SortFunc(order, func(i, j int) int {
		switch {
		case all[i] < all[j]:
			return -1
		case all[i] > all[j]:
			return 1
		}
		return 0
	})
	ranks = make([]int, len(all))
	for i := 0; i < len(order); {
		j := i
		for j < len(order) && all[order[j]] == all[order[i]] {
			j++
		}
		for _, at := range order[i:j] {
			ranks[at] = i + 1 + j
		}
		t := float64(j - i)
		ties += t*t*t - t
		i = j
	}
	return ranks, ties
}

// Verdicts of a [Change].
const (
	Improved  = "improved"
	Regressed = "regressed"
	NoChange  = "no change"
)

// Change is how a figure, of which less is better, differs from a baseline's.
type Change struct {
	Relative Interval `json:"relative"` // 0.1: a tenth more
	P        float64  `json:"p"`
	Verdict  string   `json:"verdict"`
}

// significance is the p-value below which a change is believed; noise is the change
// that does not matter.
const (
	significance = 0.05
	noise        = 0.01
)

// Compare tells how now differs from before.
func Compare(before, now []float64) Change {
	ratio := RatioInterval(now, before)
	c := Change{P: MannWhitney(before, now), Verdict: NoChange}
	c.Relative = Interval{ratio.Low - 1, ratio.Middle - 1, ratio.High - 1}
	switch {
	case c.P >= significance:
	case c.Relative.High < -noise:
		c.Verdict = Improved
	case c.Relative.Low > noise:
		c.Verdict = Regressed
	}
	return c
}
