package bench_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"dray/internal/bench"
)

func near(t *testing.T, what string, got, want, tolerance float64) {
	t.Helper()
	if math.Abs(got-want) > tolerance {
		t.Errorf("%s: got %g, want %g", what, got, want)
	}
}

func TestMannWhitney(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name string
		a, b []float64
		want float64
	}{
		// Hollander & Wolfe (1973), p. 69: permeability of the placenta; R's wilcox.test(x, y) gives W = 35, p = 0.2544
		{"R's example", []float64{0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46}, []float64{1.15, 0.88, 0.90, 0.74, 1.21}, 0.2544},
		// what benchstat prints for samples that do not overlap: p=0.008 (n=5+5), p=0.029 (n=4+4), p=0.100 (n=3+3)
		{"five and five apart", []float64{1, 2, 3, 4, 5}, []float64{6, 7, 8, 9, 10}, 0.0079365},
		{"four and four apart", []float64{1, 2, 3, 4}, []float64{6, 7, 8, 9}, 0.0285714},
		{"three and three apart", []float64{1, 2, 3}, []float64{6, 7, 8}, 0.1},
		{"all equal", []float64{1, 1, 1}, []float64{1, 1, 1}, 1},
		{"nothing", nil, []float64{1}, 1},
		// choices of two of the ranks 1, 2.5, 2.5, 4: two of six are as far apart as {1, 2.5}, which comes twice, and so is their mirror
		{"ties", []float64{1, 2}, []float64{2, 3}, 4.0 / 6},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			near(t, "p", bench.MannWhitney(test.a, test.b), test.want, 5e-5)
			near(t, "p, the other way round", bench.MannWhitney(test.b, test.a), test.want, 5e-5)
		})
	}
}

func TestMannWhitneyApproximationMeetsExact(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(7, 7))
	sample := func(n int, shift float64) []float64 {
		v := make([]float64, n)
		for i := range v {
			v[i] = random.NormFloat64() + shift
		}
		return v
	}
	a, b := sample(30, 0), sample(30, 0.6)
	exact := bench.MannWhitney(a, b)
	approximate := bench.MannWhitney(append(a, a...), append(b, b...))
	if approximate >= exact {
		t.Errorf("twice the evidence has p %g, half of it %g", approximate, exact)
	}
}

func TestMedian(t *testing.T) {
	t.Parallel()
	near(t, "odd", bench.Median([]float64{3, 1, 2}), 2, 0)
	near(t, "even", bench.Median([]float64{4, 1, 2, 3}), 2.5, 0)
	near(t, "none", bench.Median(nil), 0, 0)
}

// The interval of a median has to hold the true median about as often as it says.
func TestMedianIntervalCovers(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(3, 4))
	const rounds, size = 60, 25
	inside := 0
	for range rounds {
		v := make([]float64, size)
		for i := range v {
			v[i] = random.ExpFloat64()
		}
		if i := bench.MedianInterval(v); i.Low <= math.Ln2 && math.Ln2 <= i.High {
			inside++
		}
	}
	if inside < rounds*85/100 {
		t.Errorf("%d of %d intervals hold the median", inside, rounds)
	}
}

func TestCompare(t *testing.T) {
	t.Parallel()
	before := []float64{10, 10.1, 9.9, 10.2, 10, 9.8, 10.1}
	tests := []struct {
		name   string
		factor float64
		want   string
	}{
		{"the same", 1, bench.NoChange},
		{"a tenth less", 0.9, bench.Improved},
		{"a tenth more", 1.1, bench.Regressed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var now []float64
			for _, v := range before {
				now = append(now, v*test.factor)
			}
			got := bench.Compare(before, now)
			if got.Verdict != test.want {
				t.Errorf("got %+v, want %s", got, test.want)
			}
			near(t, "change", got.Relative.Middle, test.factor-1, 1e-9)
		})
	}
}
