// A parameter check that stops elaboration.
//
//   if (WIDTH > 8) begin : g_check_width
//     `TOKENFAB_STOP(WIDTH, "unit: WIDTH must be at most 8")
//   end
//
// Elaboration system tasks are in IEEE 1800-2012 (20.11); Icarus 11 does not know them, so there an
// instance of a module that does not exist stops elaboration and names the parameter.
`ifndef TOKENFAB_CHECK_SVH
`define TOKENFAB_CHECK_SVH
`ifdef __ICARUS__
`define TOKENFAB_STOP(PARAMETER, WORDS) illegal_value_of_``PARAMETER stop ();
`else
`define TOKENFAB_STOP(PARAMETER, WORDS) $error(WORDS);
`endif
`endif
