//go:build race

package testkit

// Race tells whether the tests run under the race detector, which makes images of
// gigabytes a matter of minutes.
const Race = true
