// Command dray brings container images from a registry to a running root file
// system. See https://pkg.go.dev for the library; "dray help" for the commands.
package main

import "os"

func main() { os.Exit(run()) }
