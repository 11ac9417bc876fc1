// One multiply-accumulate slice of a chain: the part of a Xilinx DSP48E2 (UG579) that the chain uses.
//
//   p_o = (a_i + d_i) * b_i + pcin_i       a, b, d registered twice, product once, p once
//
//   edge 1  A, D, B1      the input registers
//   edge 2  AD, B2        the pre-adder; it packs two operands, d = high << 18, a = low
//   edge 3  M             the multiplier, signed
//   edge 4  P             the post-adder, 48 bits, wraps; pcin_i is needed one edge before p_o shows it
//
// Written so that synthesis maps it onto the primitive; all registers share one enable and have no
// reset, as the primitive's do when its reset pins are tied low. Without PREADD d_i is not used.
`default_nettype none

module dsp48e2_slice #(
    parameter int A_WIDTH = 27,  // width of a_i and d_i, 2 to 27
    parameter int B_WIDTH = 18,  // width of b_i, 2 to 18
    parameter int PREADD  = 0,   // 1: multiply a + d; 0: multiply a
    parameter int CASCADE = 0    // 1: add pcin_i; 0: the first slice of a cascade
) (
    input  wire                clk_i,
    input  wire                en_i,
    input  wire  [A_WIDTH-1:0] a_i,
    input  wire  [A_WIDTH-1:0] d_i,
    input  wire  [B_WIDTH-1:0] b_i,
    input  wire  [       47:0] pcin_i,
    output logic [       47:0] p_o
);

  logic signed [A_WIDTH-1:0] a_q, ad_q;
  logic signed [B_WIDTH-1:0] b1_q, b2_q;
  logic signed [A_WIDTH+B_WIDTH-1:0] m_q;

  if (PREADD != 0) begin : g_preadd
    logic signed [A_WIDTH-1:0] d_q;
    always_ff @(posedge clk_i) begin
      if (en_i) begin
        d_q  <= d_i;
        ad_q <= a_q + d_q;
      end
    end
  end else begin : g_no_preadd
    wire unused_d = ^d_i;
    always_ff @(posedge clk_i) begin
      if (en_i) ad_q <= a_q;
    end
  end

  always_ff @(posedge clk_i) begin
    if (en_i) begin
      a_q  <= a_i;
      b1_q <= b_i;
      b2_q <= b1_q;
      m_q  <= ad_q * b2_q;
    end
  end

  if (CASCADE != 0) begin : g_cascade
    always_ff @(posedge clk_i) begin
      if (en_i) p_o <= 48'(m_q) + pcin_i;
    end
  end else begin : g_first
    wire unused_pcin = ^pcin_i;
    always_ff @(posedge clk_i) begin
      if (en_i) p_o <= 48'(m_q);
    end
  end

endmodule

`default_nettype wire
