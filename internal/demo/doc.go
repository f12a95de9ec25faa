// Package demo shows the main job of dray on this machine, without a network: it
// makes images from programs and files that the machine has, serves them from an
// embedded registry on loopback, starts the guest's pull service as a process of
// its own, asks it over ttrpc to pull and mount each image, runs a process in
// each, and prints what it took. Everything is removed afterwards.
package demo
