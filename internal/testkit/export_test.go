package testkit

// NoLeaksWithin is [NoLeaks] that waits for so long.
var NoLeaksWithin = noLeaks
