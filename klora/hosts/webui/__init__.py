"""What the user of a WebUI meets: accordion, infotext, XYZ axes and routes.

Nothing here changes a weight. Modules of the host are imported inside functions only, so that this
package can be imported (and tested) without a host.
"""
