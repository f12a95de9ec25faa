// Package api is the wire definition of the guest's pull service: two messages
// and the ttrpc service api.ImagePullService. All but this file is generated.
package api

//go:generate ./generate.sh
